"""The figures of a report in words, for tables of every kind."""

from collections.abc import Iterator

from ofqctl.results.study import Cell, Column, FigureKind, StudyReport

PLAIN = FigureKind(title="")


def number(value: float, kind: FigureKind, *, bare: bool = False) -> str:
    """A value with its unit; without it if ``bare``."""
    sign = "+" if kind.signed and not bare else ""
    text = f"{value * kind.scale:{sign}.{kind.digits}f}"
    return text if bare or not kind.unit else f"{text} {kind.unit}"


def cell_text(cell: Cell, kind: FigureKind) -> str:
    """The text of a cell: the mean, with the standard error of a difference, or else the spread over seeds."""
    if cell.mean is None:
        return ""
    beside = cell.error if kind.signed else cell.spread
    mean = number(cell.mean, kind, bare=False).removesuffix(f" {kind.unit}")
    same = kind.exact and not beside
    return mean if beside is None or same else f"{mean} ± {number(beside, kind, bare=True)}"


def heading(report: StudyReport, column: Column) -> str:
    """The heading of a column, with the unit."""
    unit = report.kinds.get(column.figure, PLAIN).unit
    return f"{column.title}, {unit}" if unit else column.title


def meaning(report: StudyReport) -> Iterator[str]:
    """What the texts of the cells mean, one sentence each."""
    cells = [
        (cell, report.kinds.get(column.figure, PLAIN))
        for table in report.tables
        for line in table.lines
        for cell, column in zip(line.cells, table.columns, strict=True)
        if cell.mean is not None
    ]
    seeds = sorted({cell.seeds for cell, kind in cells if cell.spread is not None and not kind.signed | kind.exact})
    if seeds:
        count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        yield f"Mean and standard deviation over {count} seeds."
    if any(kind.signed and cell.error is not None for cell, kind in cells):
        yield "Differences are taken image by image; behind each stands its standard error."
    if any(cell.best for cell, _ in cells):
        yield "Bold: better than every other by more than two standard errors of the difference."


def origin(report: StudyReport) -> Iterator[str]:
    """Where the figures come from, one sentence each."""
    where = report.provenance
    if where.first is not None:
        last = f" to {where.last[:10]}" if where.last and where.last[:10] != where.first[:10] else ""
        yield f"Measured {where.first[:10]}{last} at {_all(where.commits, 'commit', 'commits')}."
    if where.machines:
        yield f"{_all(where.machines, 'Machine:', 'Machines:')}."
    if where.versions:
        yield f"{', '.join(f'{name} {_one(found)}' for name, found in where.versions.items())}."
    if where.data:
        yield f"Data: {', '.join(f'{name} ({_one(found)})' for name, found in where.data.items())}."
    if where.beside:
        yield f"Up to {where.beside + 1} rows ran at once."


def _all(values: tuple[str, ...], one: str, several: str) -> str:
    return f"{one if len(values) == 1 else several} {'; '.join(values)}"


def _one(values: tuple[str, ...]) -> str:
    return " or ".join(values)
