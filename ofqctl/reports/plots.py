"""Plots as SVG with the colours of the page, so that they follow its light and dark style.

Matplotlib draws with placeholder colours, which are replaced by the page's CSS variables in the SVG. Text stays text,
in the page's font.
"""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT = 370, 235  # size of a plot, where text has size 12
_NAMES = ("ink", "muted", "line", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")
_COLOURS = {name: f"#0a0b{number:02x}" for number, name in enumerate(_NAMES, 16)}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ofqctl",
    "font.size": 12,
    "font.family": "sans-serif",
    "axes.labelsize": 12,
    "text.color": _COLOURS["muted"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.edgecolor": _COLOURS["line"],
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.xmargin": 0.01,
    "grid.color": _COLOURS["line"],
    "grid.linewidth": 0.7,
    "xtick.color": _COLOURS["line"],
    "ytick.color": _COLOURS["line"],
    "xtick.labelcolor": _COLOURS["muted"],
    "ytick.labelcolor": _COLOURS["muted"],
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "lines.linewidth": 1.5,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        colour: Name of a colour of the page.
        values: One value for each position.
        dashed: Whether it is dashed.
    """

    colour: str
    values: Sequence[float]
    dashed: bool = False


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
        points = "o" if len(positions) < 12 else None
        for line in lines:
            style = (0, (4, 2)) if line.dashed else "solid"
            axes.plot(
                positions, line.values, color=_COLOURS[line.colour], linestyle=style, marker=points, markersize=3.5
            )
        axes.margins(y=0.12)  # space for the names of the marks
        if from_zero:
            axes.set_ylim(bottom=0)
        if all(float(at).is_integer() for at in positions):
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        _label(axes, x_label, y_label)
        for at, name in marks:
            axes.axvline(at, color=_COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 2)))
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
        axes.stairs(shares, edges, fill=True, color=_COLOURS["c1"], alpha=0.75, linewidth=0)
        for threshold in thresholds:
            axes.axvline(threshold, color=_COLOURS["c2"], linewidth=1.2, linestyle=(0, (4, 2)))
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
            axes.axhline(threshold, color=_COLOURS["c2"], linewidth=1.0, linestyle=(0, (4, 2)))
        axes.plot(steps, codes, drawstyle="steps-mid", color=_COLOURS["muted"], linewidth=1.1)
        axes.plot(steps, positions, color=_COLOURS["c1"])
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        low, high = min(*positions, *codes, *thresholds), max(*positions, *codes, *thresholds)
        axes.set_ylim(low - 0.15, high + 0.15)
        _label(axes, "optimizer step", "in grid steps")
        return _svg(figure)


def pairs(names: Sequence[str], before: Sequence[float], after: Sequence[float], *, x_label: str) -> str:
    """Two bars for each name; the first one is paler."""
    with mpl.rc_context(_STYLE | {"axes.grid.axis": "x"}):
        figure, axes = _new(height=max(HEIGHT, 60 + 30 * len(names)))
        rows = range(len(names))
        axes.barh([row - 0.19 for row in rows], before, height=0.34, color=_COLOURS["c1"], alpha=0.45)
        axes.barh([row + 0.19 for row in rows], after, height=0.34, color=_COLOURS["c1"])
        axes.set_yticks(list(rows), names)
        axes.invert_yaxis()
        axes.set_xlabel(x_label)
        return _svg(figure)


def dots(points: Sequence[tuple[float, float, str]], *, x_label: str, y_label: str) -> str:
    """A scatter plot; position, value and colour for each point."""
    with mpl.rc_context(_STYLE):
        figure, axes = _new()
        for x, y, colour in points:
            axes.plot([x], [y], "o", color=_COLOURS[colour], markersize=8, alpha=0.85)
        axes.margins(0.1, 0.15)
        _label(axes, x_label, y_label)
        return _svg(figure)


def _new(height: int = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    """Put the vertical label above the axis, horizontally."""
    axes.set_xlabel(x_label)
    axes.set_title(y_label, loc="left", fontsize=12, color=_COLOURS["muted"])


def _svg(figure: Figure) -> str:
    """The figure as an SVG element in the colours and the font of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = re.sub(r"<g id=\"[^\"]*\">", "<g>", text)
    text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)  # as written by Matplotlib up to 3.10
    text = re.sub(r"font-family: [^;\"]*;?", "", text)
    for name, colour in _COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return text
