"""The figures of a report in words, for tables of every kind."""

from collections.abc import Iterable, Iterator, Mapping

from ofqctl.results.failure import Failure
from ofqctl.results.study import (
    Cell,
    CheckedClaim,
    Column,
    ComparedPair,
    FailedRow,
    FigureKind,
    Line,
    StudyPlot,
    StudyReport,
    StudyTable,
)


def kind_of(report: StudyReport, figure: str) -> FigureKind:
    """How a figure is shown."""
    return report.kinds.get(figure) or FigureKind(title=figure)


def number(value: float, kind: FigureKind, *, bare: bool = False) -> str:
    """A value with its unit; without it if ``bare``."""
    sign = "+" if kind.signed and not bare else ""
    text = f"{value * kind.scale:{sign}.{kind.digits}f}"
    return text if bare or not kind.unit else f"{text} {kind.unit}"


def cell_text(cell: Cell, kind: FigureKind) -> str:
    """The text of a cell: the mean, with the standard error of a difference, or else the spread over seeds."""
    if cell.mean is None:
        return ""
    beside = _beside(cell, kind)
    mean = number(cell.mean, kind, bare=False).removesuffix(f" {kind.unit}")
    return mean if beside is None else f"{mean} ± {number(beside, kind, bare=True)}"


def _beside(cell: Cell, kind: FigureKind) -> float | None:
    """What stands behind the mean; nothing if every measurement of an exact figure gave the same."""
    beside = cell.error if kind.signed else cell.spread
    return None if kind.exact and not beside else beside


def heading(report: StudyReport, column: Column) -> str:
    """The heading of a column, with the unit."""
    return titled(column.title, kind_of(report, column.figure))


def titled(title: str, kind: FigureKind) -> str:
    """A title, with the unit."""
    return f"{title}, {kind.unit}" if kind.unit else title


def texts(report: StudyReport, table: StudyTable, line: Line) -> list[str]:
    """The texts of a line's cells."""
    cells = zip(line.cells, table.columns, strict=True)
    return [cell_text(cell, kind_of(report, column.figure)) for cell, column in cells]


def front(report: StudyReport, plot: StudyPlot) -> str:
    """The names of the rows on the front of a plot, from left to right, as a sentence; empty if there are none."""
    names = [point.row for point in sorted(plot.points, key=lambda point: point.x) if point.front]
    figures = f"{kind_of(report, plot.x).title} and {kind_of(report, plot.y).title}"
    return f"On the front of {figures}: {', '.join(names)}." if names else ""


def apart(report: StudyReport, claim: CheckedClaim, pair: ComparedPair) -> str:
    """By how much the first row of a pair is above the second, with the standard error."""
    kind = kind_of(report, claim.figure)
    unit = "points" if kind.unit == "%" else kind.unit
    difference = f"{pair.difference * kind.scale:+.{kind.digits}f}"
    error = "" if pair.error is None else f" ± {number(pair.error, kind, bare=True)}"
    return " ".join(filter(None, (difference + error, unit)))


def together(rows: Iterable[FailedRow]) -> Iterator[tuple[FailedRow, str]]:
    """The first of the rows that are missing for one reason, and the names of all of them."""
    groups: dict[tuple[str, Failure | None], list[FailedRow]] = {}
    for row in rows:
        groups.setdefault((row.reason, row.failure), []).append(row)
    for same in groups.values():
        yield same[0], ", ".join(row.row for row in same)


def meaning(report: StudyReport, tables: Iterable[StudyTable], marked: str = "Bold") -> Iterator[str]:
    """What the texts of the cells of these tables mean, one sentence each; ``marked`` says what the best are."""
    cells = [
        (cell, kind_of(report, column.figure))
        for table in tables
        for line in table.lines
        for cell, column in zip(line.cells, table.columns, strict=True)
        if cell.mean is not None
    ]
    seeds = sorted({cell.seeds for cell, kind in cells if _beside(cell, kind) is not None and not kind.signed})
    if seeds:
        count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        yield f"Mean and standard deviation over {count} seeds."
    if any(kind.signed and _beside(cell, kind) is not None for cell, kind in cells):
        yield "Differences are taken image by image; behind each stands its standard error."
    if any(cell.best for cell, _ in cells):
        yield f"{marked}: better than every other by more than two standard errors of the difference."


def origin(report: StudyReport) -> Iterator[str]:
    """Where the figures come from, one sentence each."""
    return (f"{word}: {said}." for word, said in origins(report).items())


def origins(report: StudyReport) -> dict[str, str]:
    """Where the figures come from, by what that is."""
    where = report.provenance
    days = dict.fromkeys(time[:10] for time in (where.first, where.last) if time)
    said = {
        "Measured": " to ".join(days),
        "Commits": ", ".join(where.commits),
        "Code": ", ".join(where.codes),
        "Machines": "; ".join(where.machines),
        "Versions": _each(where.versions),
        "Data": _each(where.data),
        "At once": f"up to {where.beside + 1} rows" if where.beside else "",
    }
    return {word: text for word, text in said.items() if text}


def _each(values: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{name} {' or '.join(found)}" for name, found in values.items())
