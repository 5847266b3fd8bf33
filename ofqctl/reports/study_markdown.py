"""A study's report as Markdown, for documentation."""

from collections.abc import Iterator

from ofqctl.reports.markdown import block, plain, prose, row
from ofqctl.results.study import StudyReport, StudyTable
from ofqctl.studies.wording import front, heading, meaning, origin, texts, together


def study_markdown(report: StudyReport) -> str:
    """The text of the page."""
    return "\n\n".join(filter(None, _blocks(report))) + "\n"


def _blocks(report: StudyReport) -> Iterator[str]:
    yield f"# {block(report.study)}"
    yield prose(report.description)
    for table in report.tables:
        yield f"## {block(table.title)}"
        yield "\n".join(_table(report, table))
        yield prose(table.note)
    for plot in report.plots:
        yield plain(front(report, plot))
    yield plain(" ".join(meaning(report, report.tables)))
    yield plain(" ".join(origin(report)))
    yield "\n".join(f"* {block(note)}" for note in report.notes)
    if report.failures:
        yield "## Not there"
        yield "\n".join(f"* {block(names)}: {plain(one.reason)}" for one, names in together(report.failures))


def _table(report: StudyReport, table: StudyTable) -> Iterator[str]:
    yield row([*map(plain, table.axes), *(plain(heading(report, column)) for column in table.columns)])
    yield row(["---"] * len(table.axes) + ["---:"] * len(table.columns))
    for line in table.lines:
        cells = zip(map(plain, texts(report, table, line)), line.cells, strict=True)
        yield row([*map(plain, line.labels), *(f"**{text}**" if cell.best else text for text, cell in cells)])
