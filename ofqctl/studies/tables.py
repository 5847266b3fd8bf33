"""Tables and plots of a study's figures."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from ofqctl.errors import StudyError
from ofqctl.results.study import Cell, Column, FigureKind, Line, Point, StudyPlot, StudyTable
from ofqctl.studies.averages import front
from ofqctl.studies.comparing import Apart, Figures, apart
from ofqctl.studies.definition import Plot, Table
from ofqctl.studies.figures import SeededRow
from ofqctl.studies.rows import is_at

KindOf = Callable[[str], FigureKind]


def table_of(table: Table, rows: Sequence[SeededRow], figures: Figures, kind_of: KindOf) -> StudyTable:
    """A table.

    Args:
        table: What the study says of it.
        rows: All rows.
        figures: Their figures.
        kind_of: How a figure is shown.

    Raises:
        StudyError: Several rows fall on one cell.
    """
    placed = placed_rows(table, rows)
    across = dict.fromkeys(label for _, label in _chosen(table, rows))
    spots = [(label, figure) for figure in table.figures for label in across]
    several = len(table.figures) > 1
    lines = {
        labels: {(label, figure): row for label, row in line.items() for figure in table.figures}
        for labels, line in placed.items()
    }
    down = table.columns is None if table.best is None else table.best == "column"
    best = _best(lines, spots, figures, kind_of, down=down)
    titles = [
        Column(
            title=" ".join(filter(None, (label, kind_of(figure).title if several or not label else ""))), figure=figure
        )
        for label, figure in spots
    ]
    return StudyTable(
        title=table.title,
        note=table.note,
        axes=table.rows,
        columns=tuple(titles),
        lines=tuple(
            Line(
                labels=labels,
                cells=tuple(_cell(line.get(spot), spot, figures, (labels, spot) in best) for spot in spots),
            )
            for labels, line in lines.items()
        ),
    )


def placed_rows(table: Table, rows: Sequence[SeededRow]) -> dict[tuple[str, ...], dict[str, SeededRow]]:
    """Where the rows of a table are: by the labels of their line, and by that of their column, empty if it has none.

    Raises:
        StudyError: Several are at one place.
    """
    lines: dict[tuple[str, ...], dict[str, SeededRow]] = {}
    for row, column in _chosen(table, rows):
        line = lines.setdefault(tuple(row.labels.get(axis, "") for axis in table.rows), {})
        first = line.setdefault(column, row)
        if first is not row:
            raise StudyError(
                f"table '{table.title}': '{first.name}' and '{row.name}' fall on one cell",
                hint="another axis in `rows` or `columns`, or `where`",
            )
    return lines


def _chosen(table: Table, rows: Sequence[SeededRow]) -> Iterator[tuple[SeededRow, str]]:
    """The rows of a table, and the labels of their columns."""
    for row in rows:
        column = "" if table.columns is None else row.labels.get(table.columns)
        if column is not None and is_at(row.labels, table.where):
            yield row, column


def _cell(row: SeededRow | None, spot: tuple[str, str], figures: Figures, best: bool) -> Cell:
    found = None if row is None else figures[row.name].get(spot[1])
    if found is None:
        return Cell(mean=None)
    return Cell(mean=found.mean, spread=found.spread, error=found.error, seeds=len(found.values), best=best)


def _best(
    lines: Mapping[tuple[str, ...], Mapping[tuple[str, str], SeededRow]],
    spots: Sequence[tuple[str, str]],
    figures: Figures,
    kind_of: KindOf,
    *,
    down: bool,
) -> set[tuple[tuple[str, ...], tuple[str, str]]]:
    """Cells that are better than all others of their line, or of their column, beyond doubt.

    A difference to a row of the same table has to be a gain over that row, beyond doubt as well.
    """
    groups: dict[object, list[tuple[tuple[str, ...], tuple[str, str]]]] = {}
    for labels, line in lines.items():
        for spot in spots:
            if spot in line and spot[1] in figures[line[spot].name]:
                groups.setdefault(spot if down else (labels, spot[1]), []).append((labels, spot))
    found, shown = set(), {row.name for line in lines.values() for row in line.values()}
    for places in groups.values():
        figure = places[0][1][1]
        kind, rows = kind_of(figure), [lines[labels][spot] for labels, spot in places]
        if kind.better == "neither" or len(rows) < 2:
            continue
        sign = 1.0 if kind.better == "higher" else -1.0
        means = [sign * figures[row.name][figure].mean for row in rows]
        first = max(range(len(rows)), key=means.__getitem__)
        others = [row for number, row in enumerate(rows) if number != first]
        won = figures[rows[first].name][figure]
        gains = won.against not in shown or (means[first] > 0 and Apart(won.mean, won.error).is_clear)
        if gains and all(apart(rows[first], other, figure, figures, kind).is_clear for other in others):
            found.add(places[first])
    return found


def plot_of(plot: Plot, rows: Sequence[SeededRow], figures: Figures, kind_of: KindOf) -> StudyPlot:
    """A plot, with the front of the points that no other beats in both figures, if both have a better and a worse."""
    better = [kind_of(figure).better for figure in (plot.x, plot.y)]
    chosen = [
        (row, figures[row.name][plot.x].mean, figures[row.name][plot.y].mean)
        for row in rows
        if is_at(row.labels, plot.where) and {plot.x, plot.y} <= figures[row.name].keys()
    ]
    on_front = front([(x, y) for _, x, y in chosen], x_higher=better[0] == "higher", y_higher=better[1] == "higher")
    points = (
        Point(row=row.name, by=row.labels.get(plot.by, ""), x=x, y=y, front=is_first and "neither" not in better)
        for (row, x, y), is_first in zip(chosen, on_front, strict=True)
    )
    return StudyPlot(title=plot.title, note=plot.note, x=plot.x, y=plot.y, points=tuple(points))
