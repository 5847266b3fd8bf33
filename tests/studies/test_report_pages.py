"""Reports of studies as HTML and as Markdown hold every figure, and no name breaks them."""

import re
from html.parser import HTMLParser

import pytest

from ofqctl.reports.claim_markdown import claim_markdown
from ofqctl.reports.plots import Dot, dots
from ofqctl.reports.study import study_page
from ofqctl.reports.study_markdown import study_markdown
from ofqctl.results.failure import Failure
from ofqctl.results.study import (
    Averaged,
    Cell,
    CheckedClaim,
    Column,
    ComparedPair,
    FailedRow,
    FigureKind,
    Line,
    Point,
    Provenance,
    StudyPlot,
    StudyReport,
    StudyRow,
    StudyTable,
)

ODD = [
    "<b>bold</b> & <script>alert(1)</script>",
    "a | b",
    "one\ntwo\n\n# three",
    "`code` and ``",
    "*a* _b_ __c__ [d](http://e) ![f](g) {.h} ~~i~~ $j$ \\",
    "# heading",
    "1. first",
    "!!! note",
    "> + - quoted",
]
KINDS = {
    "top1": FigureKind(title="top-1", unit="%", better="higher"),
    "bytes": FigureKind(title="size", unit="MB", scale=1e-6, better="lower", exact=True),
    "top1 vs float": FigureKind(title="top-1 against float", unit="points", better="higher", signed=True),
}
NOWHERE = Provenance(commits=(), codes=(), machines=(), versions={}, data={}, beside=0)
EMPTY = StudyReport(
    study="empty",
    description="Nothing yet?",
    commands={"a": "evaluate {m}"},
    kinds={},
    rows=(),
    failures=(FailedRow(row="a", failure=None, reason="not run yet"),),
    tables=(StudyTable(title="T", note="", axes=("row",), columns=(Column(title="top-1", figure="top1"),), lines=()),),
    plots=(StudyPlot(title="P", note="", x="bytes", y="top1", points=()),),
    provenance=NOWHERE,
)


def row(name: str, top1: float, size: float, axis: str = "bits") -> StudyRow:
    averaged = Averaged(mean=top1, spread=0.25, error=0.5, values=(top1 - 0.25, top1 + 0.25))
    apart = Averaged(mean=top1 - 80, spread=0.25, error=0.125, values=(top1 - 80,))
    figures = {"top1": averaged, "bytes": Averaged(mean=size, spread=0.0, error=0.0, values=(size, size))}
    labels = {"row": "rounded", axis: name}
    return StudyRow(
        row=f"rounded {axis}={name}",
        labels=labels,
        seeds=("0", "1"),
        wanted=3,
        figures=figures | {"top1 vs float": apart},
    )


def made(*rows: StudyRow, axis: str = "bits", failures: tuple[FailedRow, ...] = (), **words: str) -> StudyReport:
    """A report of a table and a plot, the first row of which is the best and the last of which is not on the front."""
    lines = tuple(
        Line(
            labels=(one.labels[axis],),
            cells=tuple(
                Cell(mean=f.mean, spread=f.spread, error=f.error, seeds=2, best=one is rows[0] and name == "top1")
                for name, f in one.figures.items()
            ),
        )
        for one in rows
    )
    said = {"title": "Figures", "note": "Note.", "description": "What?"} | words
    points = tuple(
        Point(
            row=one.row,
            by=one.labels[axis],
            x=one.figures["bytes"].mean,
            y=one.figures["top1"].mean,
            front=one is not rows[-1],
        )
        for one in rows
    )
    return StudyReport(
        study="study",
        description=said["description"],
        commands={"rounded": "quantize {model} --seed {seed}", "script": "python mine.py"},
        kinds=KINDS,
        rows=rows,
        failures=failures,
        tables=(
            StudyTable(
                title=said["title"],
                note=said["note"],
                axes=(axis,),
                columns=tuple(Column(title=KINDS[name].title, figure=name) for name in rows[0].figures),
                lines=lines,
            ),
        ),
        plots=(StudyPlot(title=said["title"], note=said["note"], x="bytes", y="top1", points=points),),
        provenance=Provenance(
            commits=("abc", "def"),
            codes=("1", "2"),
            machines=("CPU, 2 cores",),
            versions={"torch": ("2.9", "2.10")},
            data={"val": ("60303ae2",)},
            first="2026-11-20T10:00:00Z",
            last="2026-11-21T10:00:00Z",
            beside=1,
        ),
        notes=("the rows were measured with 2 versions of the program: abc, def",),
    )


class Html(HTMLParser):
    """Text by element, and a check that every element is closed in turn."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tags: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not any(name in ("src", "xlink:href") for name, _ in attrs)
        self.tags.append(tag)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag, _):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts[tag][-1] += data


@pytest.fixture
def report() -> StudyReport:
    failure = Failure(kind="data", message="no images", hint="`--data DIR` takes <images>")
    missing = tuple(FailedRow(row=f"late seed={seed}", failure=None, reason="not run yet") for seed in "01")
    failed = FailedRow(row="broken seed=0", failure=failure, reason="train: no images")
    return made(row("W8", 81.5, 5e6), row("W4", 79.25, 3e6), row("W9", 70.0, 6e6), failures=(failed, *missing))


def test_page_and_markdown_have_the_same_figures(report):
    markdown = study_markdown(report)
    shown = Html(study_page(report)).texts
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("| W")]
    assert lines[0] == ["W8", "**81.50 ± 0.25**", "5.00", "+1.50 ± 0.12"]
    assert "| bits | top-1, % | size, MB | top-1 against float, points |" in markdown
    for line in lines:
        for cell in line[1:]:
            assert shown["td"].count(cell.strip("*")) == 2, "once in its table, once among all rows"
    assert {"top-1, %", "size, MB", "top-1 against float, points"} <= {*shown["th"]}


def test_the_best_is_marked_once(report):
    page = study_page(report)
    assert Html(page).texts["mark"] == ["81.50 ± 0.25"]
    assert re.search(r"mark \{[^}]*font-weight: 700", page)
    assert study_markdown(report).count("**") == 2
    assert "Bold: better than every other" in page


def test_the_front_is_a_line_of_text_from_left_to_right_and_steps_in_the_plot(report):
    line = "On the front of size and top-1: rounded bits=W4, rounded bits=W8."
    page = study_page(report)
    assert line in page
    assert f"\n\n{line}\n\n" in study_markdown(report)
    path = re.search(r'd="(M [^"]*)"[^>]*clip-path[^>]*stroke: var\(--muted\)[^>]*', page)
    path = path or re.search(r'd="(M [^"]*)"[^>]*stroke: var\(--muted\)[^>]*stroke-width: 1;', page)
    corners = [tuple(map(float, one.split())) for one in re.split("[ML]", path[1]) if one.strip()]
    (x0, y0), (x1, y1), (x2, y2) = corners
    assert x0 < x1 == x2 and y0 == y1 > y2


def test_every_point_says_what_it_is(report):
    titles = Html(study_page(report)).texts["title"]
    assert titles[1:] == [
        "rounded bits=W8: 5.00 MB, 81.50 %",
        "rounded bits=W4: 3.00 MB, 79.25 %",
        "rounded bits=W9: 6.00 MB, 70.00 %",
    ]


def test_the_page_says_what_is_missing_and_where_figures_are_from(report):
    page = Html(study_page(report))
    text = " ".join(page.texts["main"])
    tiles = dict(zip(page.texts["span"], page.texts["b"], strict=False))
    assert list(tiles.items())[:4] == [
        ("rows done", "6 of 9"),
        ("rows failed", "1"),
        ("rows left out or not run", "2"),
        ("seeds", "2"),
    ]
    assert "broken seed=0: train: no images" in text
    assert "--data DIR" in page.texts["code"]
    assert "late seed=0, late seed=1" in page.texts["dd"]
    assert {"ofqctl quantize {model} --seed {seed}", "python mine.py"} <= {*page.texts["code"]}
    origin = ["2026-11-20 to 2026-11-21", "abc, def", "1, 2", "CPU, 2 cores", "torch 2.9 or 2.10", "val 60303ae2"]
    assert [*origin, "up to 2 rows"] == page.texts["dd"][-7:]
    assert "The rows were measured with 2 versions of the program: abc, def." in text
    assert page.texts["h2"] == ["Figures", "Plots", "Failed", "Not there", "All rows", "Commands", "Origin"]


def test_claims_stand_on_the_page_with_their_verdicts(report):
    pair = ComparedPair(first="a <b>", second="b", difference=0.5, error=0.125, verdict="holds")
    claim = CheckedClaim(name="c", paper="Paper.", says="a is best", figure="top1", pairs=(pair,), verdict="holds")
    page = Html(study_page(report.model_copy(update={"claims": (claim, claim.model_copy(update={"pairs": ()}))})))
    assert page.texts["h2"].count("a is best") == 2 and "No two rows of it are done." in page.texts["p"]
    assert "Paper. Here: holds." in page.texts["p"] and "a <b>" in page.texts["th"]
    assert "+0.50 ± 0.12 points" in page.texts["td"]
    assert "| a &lt;b> | b | +0.50 ± 0.12 points | holds |" in claim_markdown(report, claim)


def test_a_line_has_a_cell_for_each_column():
    with pytest.raises(ValueError, match=r"lines\.0: 1 labels and 0 cells; there are 1 axes and 1 columns"):
        StudyTable(**EMPTY.tables[0].model_dump() | {"lines": ({"labels": ("a",), "cells": ()},)})


def test_a_report_of_nothing_is_a_page():
    page = Html(study_page(EMPTY))
    assert page.texts["h1"] == ["empty"]
    assert "0 of 1" in page.texts["b"] and "svg" not in page.tags
    assert page.texts["h2"] == ["T", "Not there", "Commands"]
    assert "No row of it is done." in page.texts["p"]
    assert study_markdown(EMPTY).endswith("## Not there\n\n* a: not run yet\n")


def test_a_figure_of_unknown_kind_has_its_own_name():
    one = row("W8", 80.0, 5e6)
    own = one.model_copy(update={"figures": {"mine": one.figures["top1"]}})
    report = EMPTY.model_copy(update={"rows": (own,)})
    assert Html(study_page(report)).texts["th"] == ["row", "seeds", "mine", own.row]


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_stand_on_the_page_as_they_are(odd):
    failure = Failure(kind="bug", message=odd, hint=odd.replace("`", ""))
    failures = (FailedRow(row=odd, failure=failure, reason=odd), FailedRow(row=odd, failure=None, reason=odd))
    rows = [row(odd, 80.0, 5e6, odd), row("W4", 79.0, 3e6, odd), row("W9", 70.0, 6e6, odd)]
    plain = made(*(row(f"W{bits}", 80.0 - bits, 5e6) for bits in (1, 2, 3)), failures=failures)
    page = study_page(made(*rows, axis=odd, failures=failures, title=odd, note=odd, description=odd))
    parsed = Html(page)
    assert {*parsed.tags} <= {*Html(study_page(plain)).tags}, "no element more"
    assert "script" not in parsed.tags
    assert odd in parsed.texts["th"] and odd in parsed.texts["h2"] and odd in parsed.texts["figcaption"][0]


def test_the_page_loads_nothing(report):
    page = study_page(report)
    assert not re.search(r"@import|<script|url\((?!#)|src=", page)
    assert {*re.findall(r'href="([^"]*)"', page)} == {"data:,"} | {*re.findall(r'xlink:href="(#[^"]*)"', page)}


@pytest.mark.parametrize("odd", ODD)
def test_odd_names_stand_in_markdown_as_they_are(odd):
    markdown = pytest.importorskip("markdown", reason="the renderer of the documentation is not installed")
    failures = (FailedRow(row=odd, failure=None, reason=odd),)
    rows = [row(odd, 80.0, 5e6, odd), row("W4", 79.0, 3e6, odd), row("W9", 70.0, 6e6, odd)]
    prose = odd.replace("`", "'")  # between backticks it is code
    text = study_markdown(made(*rows, axis=odd, failures=failures, title=odd, note=prose, description=prose))
    extensions = ["admonition", "attr_list", "tables"]
    html = Html(markdown.markdown(text, extensions=extensions))
    plain = " ".join(odd.split())
    assert html.texts["h2"] == [plain, "Not there"]
    assert html.texts["th"] == [plain, "top-1, %", "size, MB", "top-1 against float, points"]
    assert html.texts["td"][:2] == [plain, "80.00 ± 0.25"] and len(html.texts["td"]) == 12
    assert html.texts["strong"] == ["80.00 ± 0.25"]
    assert html.texts["p"][:2] == [" ".join(prose.split())] * 2
    assert html.texts["li"][-1] == f"{plain}: {plain}"
    assert {*html.tags} == {"h1", "h2", "p", "table", "thead", "tbody", "tr", "th", "td", "strong", "ul", "li"}


def test_names_keep_their_underscores_readable():
    text = study_markdown(made(row("vit_tiny_patch16_224", 80.0, 5e6), row("W4", 79.0, 3e6)))
    assert "| vit_tiny_patch16_224 |" in text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["模型", "\x02", "😀"])
def test_letters_that_the_font_of_plots_lacks_stay(name):
    assert name in dots([Dot(0.0, 0.0, "c1", "o", name)], x_label=name, y_label="")


def test_dollars_in_a_plot_are_no_formula():
    svg = dots([Dot(0.0, 0.0, "c1", "o", r"$\frac$")], x_label="$x^$", y_label="$")
    assert r"$\frac$" in svg and "$x^$" in svg


def test_what_stands_between_backticks_in_a_note_is_code():
    text = study_markdown(
        made(row("W4", 80.0, 5e6), note="With `--jobs 1` alone, 2 * 3 and a single ` there.", description="d")
    )
    assert "With `--jobs 1` alone, 2 \\* 3 and a single \\` there." in text
