"""A study's report as Markdown, for documentation."""

from collections.abc import Iterator

from ofqctl.results.study import Cell, StudyReport, StudyTable
from ofqctl.studies.wording import PLAIN, cell_text, heading, meaning, origin


def study_markdown(report: StudyReport) -> str:
    """The text of the page."""
    return "\n".join(_lines(report)).rstrip() + "\n"


def _lines(report: StudyReport) -> Iterator[str]:
    yield f"# {report.study}\n\n{report.description}\n"
    for table in report.tables:
        yield from _table(report, table)
    for paragraph in (" ".join(meaning(report)), " ".join(origin(report))):
        if paragraph:
            yield f"{paragraph}\n"
    for note in report.notes:
        yield f"* {note}"
    if report.failures:
        yield "## Not there\n"
        yield from (f"* {_text(row.row)}: {_text(row.reason)}" for row in report.failures)


def _table(report: StudyReport, table: StudyTable) -> Iterator[str]:
    yield f"## {table.title}\n"
    columns = [*table.axes, *(heading(report, column) for column in table.columns)]
    yield _row(columns)
    yield _row(["---"] * len(table.axes) + ["---:"] * len(table.columns))
    for line in table.lines:
        cells = zip(line.cells, table.columns, strict=True)
        yield _row([*line.labels, *(_cell(report, cell, column.figure) for cell, column in cells)])
    yield f"\n{table.note}\n" if table.note else ""


def _cell(report: StudyReport, cell: Cell, figure: str) -> str:
    text = cell_text(cell, report.kinds.get(figure, PLAIN))
    return f"**{text}**" if cell.best else text


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
