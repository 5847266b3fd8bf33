"""Plots as SVG with the colours of the page, so that they follow its light and dark style.

Matplotlib draws with placeholder colours, which are replaced by the page's CSS variables in the SVG. Text stays text,
in the page's font.
"""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ofqctl.reports.placing import places, shortened

WIDTH, HEIGHT = 370, 235  # size of a plot, where text has size 12
_WIDE = 440, 310  # that of a wide one
_LETTER = 5.8  # about the width of a letter beside a point
_DOT = "dot-"  # ahead of the number of a point in the SVG
PALETTE = Path(__file__).with_name("palette.css").read_text(encoding="utf-8")
_NAMES = ("ink", "muted", "line", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")
PLACEHOLDERS = {name: f"#0a0b{number:02x}" for number, name in enumerate(_NAMES, 16)}
LIGHT = dict(re.findall(r"--(\w+): (#\w+)", PALETTE[: PALETTE.index("@media")]))


def style(colours: Mapping[str, str]) -> dict[str, Any]:
    """Settings of Matplotlib for plots in these colours, which ``_NAMES`` names."""
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": "ofqctl",
        "text.parse_math": False,
        "font.size": 12,
        "font.family": "sans-serif",
        "axes.labelsize": 12,
        "text.color": colours["muted"],
        "axes.labelcolor": colours["muted"],
        "axes.edgecolor": colours["line"],
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.xmargin": 0.01,
        "grid.color": colours["line"],
        "grid.linewidth": 0.7,
        "xtick.color": colours["line"],
        "ytick.color": colours["line"],
        "xtick.labelcolor": colours["muted"],
        "ytick.labelcolor": colours["muted"],
        "xtick.labelsize": 11.5,
        "ytick.labelsize": 11.5,
        "xtick.major.size": 3,
        "ytick.major.size": 0,
        "lines.linewidth": 1.5,
        "lines.solid_capstyle": "round",
    }


_STYLE: Any = style(PLACEHOLDERS)


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        colour: Name of a colour of the page.
        values: One value for each position.
        dashed: Whether it is dashed.
        marker: Matplotlib's name of the marker of its points.
    """

    colour: str
    values: Sequence[float]
    dashed: bool = False
    marker: str = "o"


def curves(
    positions: Sequence[float],
    lines: Iterable[Line],
    *,
    x_label: str,
    y_label: str,
    marks: Sequence[tuple[float, str]] = (),
    from_zero: bool = True,
) -> str:
    """Curves over common positions, with named vertical marks.

    Args:
        positions: Positions in ascending order.
        lines: The curves.
        x_label: Label of the positions.
        y_label: Label of the values.
        marks: Positions of vertical marks, with their names.
        from_zero: Whether the vertical axis begins at 0.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _new()
        few = len(positions) < 12
        for line in lines:
            dashes = (0, (4, 2)) if line.dashed else "solid"
            marker = line.marker if few else None
            colour = PLACEHOLDERS[line.colour]
            axes.plot(positions, line.values, color=colour, linestyle=dashes, marker=marker, markersize=4)
        axes.margins(y=0.12)  # space for the names of the marks
        if from_zero:
            axes.set_ylim(bottom=0)
        if all(float(at).is_integer() for at in positions):
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _label(axes, x_label, y_label)
        for at, name in marks:
            axes.axvline(at, color=PLACEHOLDERS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
            axes.annotate(
                name,
                (at, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(4, -2),
                textcoords="offset points",
                va="top",
            )
        return _svg(figure)


def histogram(edges: Sequence[float], shares: Sequence[float], thresholds: Sequence[float], *, x_label: str) -> str:
    """A histogram with thresholds.

    Args:
        edges: Edges of the bins, one more than bins.
        shares: Share of each bin.
        thresholds: Positions of vertical lines.
        x_label: Label of the positions.
    """
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        figure, axes = _new()
        axes.stairs(shares, edges, fill=True, color=PLACEHOLDERS["c1"], alpha=0.75, linewidth=0)
        for threshold in thresholds:
            axes.axvline(threshold, color=PLACEHOLDERS["c2"], linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set_yticks([])
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel(x_label)
        return _svg(figure)


def path(steps: Sequence[int], positions: Sequence[float], codes: Sequence[int], thresholds: Sequence[float]) -> str:
    """The trajectory of one weight: latent position as a line, code as a step curve, thresholds dashed."""
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        figure, axes = _new()
        for threshold in thresholds:
            axes.axhline(threshold, color=PLACEHOLDERS["c2"], linewidth=1.0, linestyle=(0, (4, 2)))
        axes.plot(steps, codes, drawstyle="steps-mid", color=PLACEHOLDERS["muted"], linewidth=1.1)
        axes.plot(steps, positions, color=PLACEHOLDERS["c1"])
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        low, high = min(*positions, *codes, *thresholds), max(*positions, *codes, *thresholds)
        axes.set_ylim(low - 0.15, high + 0.15)
        _label(axes, "optimizer step", "in grid steps")
        return _svg(figure)


def pairs(names: Sequence[str], before: Sequence[float], after: Sequence[float], *, x_label: str) -> str:
    """Two bars for each name; the first one is paler."""
    with mpl.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure, axes = _new(WIDTH, max(HEIGHT, 60 + 30 * len(names)))
        rows = range(len(names))
        axes.barh([row - 0.19 for row in rows], before, height=0.34, color=PLACEHOLDERS["c1"], alpha=0.45)
        axes.barh([row + 0.19 for row in rows], after, height=0.34, color=PLACEHOLDERS["c1"])
        axes.set_yticks(list(rows), names)
        axes.invert_yaxis()
        axes.set_xlabel(x_label)
        return _svg(figure)


@dataclass(frozen=True)
class Dot:
    """One point of a scatter plot.

    Attributes:
        x: Position.
        y: Value.
        colour: Name of a colour of the page.
        marker: Matplotlib's name of the marker.
        name: What stands beside it.
        title: What a pointer on it shows; its name if that is empty.
    """

    x: float
    y: float
    colour: str
    marker: str
    name: str
    title: str = ""


def dots(
    points: Sequence[Dot], *, x_label: str, y_label: str, line: Sequence[tuple[float, float]] = (), wide: bool = False
) -> str:
    """A scatter plot, with a name beside each point that has one.

    Args:
        points: The points.
        x_label: Label of the positions.
        y_label: Label of the values.
        line: Corners of a line behind the points.
        wide: Whether the plot is for a wide card.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _new(*_WIDE if wide else (WIDTH, HEIGHT))
        axes.plot(*zip(*line, strict=True), color=PLACEHOLDERS["muted"], linewidth=1)
        for number, dot in enumerate(points):
            colour = PLACEHOLDERS[dot.colour]
            axes.plot([dot.x], [dot.y], dot.marker, color=colour, markersize=8, gid=f"{_DOT}{number}")
        axes.margins(0.1, 0.15)
        _label(axes, x_label, y_label)
        _name(figure, axes, points, line)
        return _svg(figure, [dot.title or dot.name for dot in points])


def _name(figure: Figure, axes: Axes, points: Sequence[Dot], line: Sequence[tuple[float, float]]) -> None:
    """Write the names of points beside them."""
    with _any_letters():
        figure.draw_without_rendering()
    names = [shortened(dot.name) for dot in points]
    on_page = axes.transData.transform
    at, corners = [tuple(on_page((dot.x, dot.y))) for dot in points], [tuple(on_page(corner)) for corner in line]
    found = places(at, [_LETTER * len(name) for name in names], corners, axes.bbox)
    for dot, name, (right, up) in zip(points, names, found, strict=True):
        if name:
            axes.annotate(
                name,
                (dot.x, dot.y),
                xytext=(right, up),
                textcoords="offset points",
                ha="left" if right > 0 else "right",
                va="center",
                fontsize=10.5,
                arrowprops={"arrowstyle": "-", "color": PLACEHOLDERS["muted"], "linewidth": 0.5} if up else None,
            )


def in_both_styles(svg: str) -> str:
    """An SVG document whose placeholders follow the reader's choice of a light or dark style."""
    start = svg.index(">", svg.index("<svg")) + 1
    text = f"{svg[:start]}<style>{PALETTE} :root {{ background: var(--card); }}</style>{svg[start:]}"
    return _coloured(text)


def _new(width: int = WIDTH, height: int = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    """Put the vertical label above the axis, horizontally."""
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", fontsize=12, color=PLACEHOLDERS["muted"])


def _svg(figure: Figure, titles: Sequence[str] = ()) -> str:
    """The figure as an SVG element in the colours and the font of the page; its dots have these titles."""
    buffer = io.StringIO()
    with _any_letters():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(f'<g id="{_DOT}(\\d+)">', lambda at: f"<g><title>{escape(titles[int(at[1])])}</title>", text)
    text = re.sub(r"<g id=\"[^\"]*\">", "<g>", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)  # as written by Matplotlib up to 3.10
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    return _coloured(text)


@contextmanager
def _any_letters() -> Iterator[None]:
    """Letters that Matplotlib's font lacks are no matter: the page's fonts show them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)
        yield


def _coloured(text: str) -> str:
    for name, colour in PLACEHOLDERS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
