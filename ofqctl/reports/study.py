"""The page of ``study report``."""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from itertools import pairwise

from ofqctl.reports import page
from ofqctl.reports.looks import Look, look_of
from ofqctl.reports.plots import Dot, dots
from ofqctl.results.study import Averaged, Cell, CheckedClaim, Column, Line, Point, StudyPlot, StudyReport, StudyTable
from ofqctl.studies.wording import apart, front, heading, kind_of, meaning, number, origins, texts, titled, together


def study_page(report: StudyReport) -> str:
    """The HTML document."""
    lead = "<br>".join(escape(text) for text in (report.description, *map(page.sentence, report.notes)))
    parts = [
        _tiles(report),
        *(_table(report, table) for table in report.tables),
        _plots(report),
        *(_claim(report, claim) for claim in report.claims),
        *_absent(report),
        _table(report, _every_row(report)) if report.rows else "",
        page.section("Commands", "What makes each kind of row.", page.definitions(_commands(report), code=True)),
        page.section("Origin", "Where the figures come from.", page.definitions(origins(report))),
    ]
    return page.page(report.study, lead, parts)


def _tiles(report: StudyReport) -> str:
    done = sum(len(row.seeds) for row in report.rows)
    failed = sum(row.failure is not None for row in report.failures)
    seeds = {seed for row in report.rows for seed in row.seeds if seed}
    figures = {
        "rows done": f"{done} of {done + len(report.failures)}",
        "rows failed": f"{failed}",
        "rows left out or not run": f"{len(report.failures) - failed}",
    }
    if seeds:
        figures["seeds"] = f"{len(seeds)}"
    if report.provenance.last is not None:
        figures["last measured"] = report.provenance.last[:10]
    return page.tiles(figures)


def _table(report: StudyReport, table: StudyTable) -> str:
    columns = [*(f"<{axis}" for axis in table.axes), *(f">{heading(report, column)}" for column in table.columns)]
    rows = [
        [*line.labels, *(page.Best(text) if cell.best else text for text, cell in zip(shown, line.cells, strict=True))]
        for line, shown in ((line, texts(report, table, line)) for line in table.lines)
    ]
    lead = " ".join(filter(None, (table.note, *meaning(report, [table]))))
    return page.section(table.title, lead, page.table(columns, rows) if rows else "<p>No row of it is done.</p>")


def _every_row(report: StudyReport) -> StudyTable:
    """All figures of all rows as a table."""
    names = dict.fromkeys(name for row in report.rows for name in row.figures)
    return StudyTable(
        title="All rows",
        note="",
        axes=("row", "seeds"),
        columns=tuple(Column(title=kind_of(report, name).title, figure=name) for name in names),
        lines=tuple(
            Line(
                labels=(row.row, f"{len(row.seeds)} of {row.wanted}"),
                cells=tuple(_cell(row.figures.get(name)) for name in names),
            )
            for row in report.rows
        ),
    )


def _cell(found: Averaged | None) -> Cell:
    if found is None:
        return Cell(mean=None)
    return Cell(mean=found.mean, spread=found.spread, error=found.error, seeds=len(found.values))


def _plots(report: StudyReport) -> str:
    """The plots; what has one label has one look in all of them."""
    labels = dict.fromkeys(point.by for plot in report.plots for point in plot.points)
    looks = {label: look_of(place) for place, label in enumerate(labels)}
    cards = [_card(report, plot, looks) for plot in report.plots if plot.points]
    lead = "The line is the front: no row is at least as good in both figures as a row on it, and better in one."
    return page.section("Plots", lead, page.cards(cards, wide=True))


def _card(report: StudyReport, plot: StudyPlot, looks: dict[str, Look]) -> tuple[str, str, str]:
    """Title, legend and plot, and caption."""
    x, y = kind_of(report, plot.x), kind_of(report, plot.y)
    names = _names(report, plot.points)
    points = [
        Dot(
            point.x * x.scale,
            point.y * y.scale,
            looks[point.by].colour,
            looks[point.by].marker,
            names[point.row] if point.front else "",
            f"{point.row}: {number(point.x, x)}, {number(point.y, y)}",
        )
        for point in plot.points
    ]
    ends = sorted((dot.x, dot.y) for dot, point in zip(points, plot.points, strict=True) if point.front)
    svg = dots(
        points,
        x_label=titled(x.title, x),
        y_label=titled(y.title, y),
        line=list(_stairs(ends, ahead=x.better == "higher")),
        wide=True,
    )
    shown = dict.fromkeys(point.by for point in plot.points)
    key = page.legend(page.Key(label, looks[label].colour, None, looks[label].sign) for label in shown)
    return plot.title, svg + key, " ".join(filter(None, (plot.note, front(report, plot))))


def _stairs(ends: Sequence[tuple[float, float]], *, ahead: bool) -> Iterator[tuple[float, float]]:
    """The corners of steps through these points, from left to right; each step is ahead of its point or behind it."""
    yield from ends[:1]
    for (x, y), (next_x, next_y) in pairwise(ends):
        yield (x, next_y) if ahead else (next_x, y)
        yield next_x, next_y


def _names(report: StudyReport, points: Iterable[Point]) -> dict[str, str]:
    """Short names of the rows in a plot: the labels that are not the same for all, without that of the legend."""
    labels = {row.row: row.labels for row in report.rows}
    by = {point.row: point.by for point in points}
    axes = dict.fromkeys(axis for row in by for axis in labels.get(row, {}))
    differ = [axis for axis in axes if len({labels.get(row, {}).get(axis) for row in by}) > 1]
    return {
        row: " ".join(own for axis in differ if (own := labels.get(row, {}).get(axis, "")) not in ("", label)) or label
        for row, label in by.items()
    }


def _claim(report: StudyReport, claim: CheckedClaim) -> str:
    """A claim of a paper, the pairs of rows that it compares, and the verdict."""
    columns = ["<better, by the claim", "<than", f">difference in {kind_of(report, claim.figure).title}", "<verdict"]
    rows = [[pair.first, pair.second, apart(report, claim, pair), pair.verdict] for pair in claim.pairs]
    body = page.table(columns, rows) if rows else "<p>No two rows of it are done.</p>"
    return page.section(claim.says, f"{claim.paper.rstrip('.')}. Here: {claim.verdict}.", body)


def _absent(report: StudyReport) -> Iterator[str]:
    """What failed, and what is not there for another reason."""
    failed = [
        (f"{names}: {row.reason}", row.failure.hint or "")
        for row, names in together(row for row in report.failures if row.failure is not None)
        if row.failure is not None
    ]
    missing = {row.reason: names for row, names in together(row for row in report.failures if row.failure is None)}
    yield page.section(
        "Failed", "Rows whose command, or one that measures them, ended with an error.", page.findings(failed)
    )
    yield page.section("Not there", "Rows without figures.", page.definitions(missing))


def _commands(report: StudyReport) -> dict[str, str]:
    """The commands, as they are typed."""
    return {
        name: command if command.startswith("python ") else f"ofqctl {command}"
        for name, command in report.commands.items()
    }
