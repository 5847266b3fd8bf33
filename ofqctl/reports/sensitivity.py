"""The plot of ``sensitivity``: a row for each layer, in the order of the model, and a panel for each bit-width."""

from collections.abc import Mapping
from io import BytesIO, StringIO
from typing import Any, Literal

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ofqctl.reports.plots import LIGHT, PLACEHOLDERS, in_both_styles, style

_ROW, _PANEL, _NAMES, _AROUND = 0.19, 1.7, 1.9, 1.5  # inches
_COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8")
_MARKERS = "os^DvPX*"
Format = Literal["png", "svg", "pdf"]


def draw(divergence: Mapping[str, Mapping[int, float]], roles: Mapping[str, str], title: str, kind: Format) -> bytes:
    """The content of the file.

    Args:
        divergence: For each layer, in the order of the model, how far the output is from the float model's, by bits.
        roles: What each layer does.
        title: Title of the plot, which says what was measured.
        kind: Format of the file. SVG follows the reader's choice of a light or dark style.
    """
    colours = PLACEHOLDERS if kind == "svg" else LIGHT
    settings: Any = style(colours) | {"axes.grid.axis": "both"}
    with rc_context(settings):
        figure = _figure(divergence, roles, title, colours)
        if kind == "svg":
            text = StringIO()
            figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            return in_both_styles(text.getvalue()).encode()
        content = BytesIO()
        figure.savefig(content, format=kind, facecolor="white", dpi=150)
        return content.getvalue()


def _figure(
    divergence: Mapping[str, Mapping[int, float]], roles: Mapping[str, str], title: str, colours: Mapping[str, str]
) -> Figure:
    names, widths = list(divergence), sorted(next(iter(divergence.values())))
    size = (_NAMES + _PANEL * len(widths), _AROUND + _ROW * len(names))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(widths), sharex=True, sharey=True, squeeze=False)[0]
    looks = dict(zip(dict.fromkeys(roles.values()), zip(_COLOURS, _MARKERS, strict=True), strict=False))
    smallest = min((kl for layer in divergence.values() for kl in layer.values() if kl > 0), default=1e-6)
    for bits, axes in zip(widths, panels, strict=True):
        for role, (own, marker) in looks.items():
            rows = [row for row, name in enumerate(names) if roles[name] == role]
            values = [max(divergence[names[row]][bits], smallest) for row in rows]
            axes.plot(values, rows, marker, color=colours[own], markersize=5, clip_on=False)
        axes.set_title(f"{bits} bits", fontsize=11)
        axes.set_xscale("log")
        axes.margins(x=0.06)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(labelsize=9)
        axes.set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle(title, fontsize=12)
    entries = [
        Line2D([], [], linestyle="", marker=marker, color=colours[own], label=role)
        for role, (own, marker) in looks.items()
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=min(len(entries), 7), frameon=False, fontsize=10)
    return figure
