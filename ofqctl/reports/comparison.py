"""The page of ``compare``: runs side by side."""

from html import escape

from ofqctl.diagnosis.findings import percent
from ofqctl.reports import page
from ofqctl.reports.plots import Line, curves, dots
from ofqctl.results.analyze_oscillation import Epoch
from ofqctl.results.compare import ComparedRun, Comparison

_COLOURS = 8
_CURVES = (
    ("Oscillating weights", "% of the weights", "oscillating", 100.0),
    ("Codes that change", "% of the codes in a step", "flips_per_step", 100.0),
    ("Top-1 accuracy", "%", "val_top1", 1.0),
)


def comparison_page(comparison: Comparison) -> str:
    """The HTML document."""
    notes = "<br>".join(escape(f"{note[:1].upper()}{note[1:]}.") for note in comparison.notes)
    names = _short_names(comparison)
    return page.page("Runs compared", notes, [_table(comparison, names), _plots(comparison, names)])


def _short_names(comparison: Comparison) -> list[str]:
    """The runs' paths without their common prefix."""
    paths = [run.run.rstrip("/").split("/") for run in comparison.runs]
    common = 0
    while len({tuple(path[: common + 1]) for path in paths}) == 1 and all(len(path) > common + 1 for path in paths):
        common += 1
    return ["/".join(path[common:]) for path in paths]


def _table(comparison: Comparison, names: list[str]) -> str:
    columns = [
        "<run",
        "bits",
        "size",
        "top-1",
        "oscillating",
        "changed a step",
        "training",
        "seed",
        "<model",
        "<recipe",
    ]
    rows = [[name, *_cells(run)] for name, run in zip(names, comparison.runs, strict=True)]
    return page.section("All figures", "Figures from the files of the runs.", page.table(columns, rows))


def _cells(run: ComparedRun) -> list[str]:
    """The figures of a run as text; empty if there is none."""
    bits = "float" if run.weight_bits == run.activation_bits == 32 else f"W{run.weight_bits}A{run.activation_bits}"
    return [
        bits,
        f"{run.bytes / 1e6:.2f} MB",
        "" if run.top1 is None else f"{run.top1:.2f} %",
        "" if run.oscillating is None else percent(run.oscillating),
        "" if run.flips_per_step is None else percent(run.flips_per_step),
        "" if run.seconds is None else f"{run.seconds:.0f} s",
        "" if run.seed is None else str(run.seed),
        run.model,
        run.recipe,
    ]


def _plots(comparison: Comparison, names: list[str]) -> str:
    """Top-1 against cost, and training over epochs, with a colour for each run."""
    runs = list(zip(comparison.runs, map(_colour, range(len(names))), strict=True))
    measured = [(run, colour) for run, (colour, _) in runs if run.top1 is not None]
    sizes = [(run.bytes / 1e6, run.top1 or 0.0, colour) for run, colour in measured]
    still = [
        (100.0 * run.oscillating, run.top1 or 0.0, colour) for run, colour in measured if run.oscillating is not None
    ]
    plots = []
    if len(sizes) > 1:
        plots.append(("Accuracy and size", dots(sizes, x_label="MB", y_label="top-1, %"), ""))
    if len(still) > 1:
        svg = dots(still, x_label="% of the weights that oscillate", y_label="top-1, %")
        plots.append(("Accuracy and oscillation", svg, ""))
    longest = max(len(run.epochs) for run in comparison.runs)
    for title, label, key, factor in _CURVES if longest > 1 else ():
        lines = [
            Line(colour, _padded(run.epochs, key, factor, longest), dashed)
            for run, (colour, dashed) in runs
            if any(getattr(row, key) is not None for row in run.epochs)
        ]
        if lines:
            epochs = [float(number) for number in range(1, longest + 1)]
            svg = curves(epochs, lines, x_label="epoch", y_label=label, from_zero=key != "val_top1")
            plots.append((title, svg, ""))
    if not plots:
        return ""
    key = page.legend((name, *_colour(number)) for number, name in enumerate(names))
    return page.section("Side by side", "Accuracy against cost, and the course of training.", key, page.cards(plots))


def _colour(number: int) -> tuple[str, bool]:
    """The colour of a run, and whether its curves are dashed."""
    return f"c{number % _COLOURS + 1}", number >= _COLOURS


def _padded(rows: tuple[Epoch, ...], key: str, factor: float, length: int) -> list[float]:
    """Values for the epochs, with gaps for missing ones."""
    values = [getattr(row, key) for row in rows]
    known = [float("nan") if value is None else factor * value for value in values]
    return [*known, *[float("nan")] * (length - len(known))]
