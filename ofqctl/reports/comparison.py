"""The page of ``compare``: runs side by side."""

from html import escape
from pathlib import PurePath

from ofqctl.diagnosis.findings import percent
from ofqctl.reports import page
from ofqctl.reports.looks import look_of
from ofqctl.reports.plots import Dot, Line, curves, dots
from ofqctl.results.analyze_oscillation import Epoch
from ofqctl.results.compare import ComparedRun, Comparison

_CURVES = (
    ("Oscillating weights", "% of the weights", "oscillating", 100.0),
    ("Codes that change", "% of the codes in a step", "flips_per_step", 100.0),
    ("Top-1 accuracy", "%", "val_top1", 1.0),
)


def comparison_page(comparison: Comparison) -> str:
    """The HTML document."""
    notes = "<br>".join(escape(page.sentence(note)) for note in comparison.notes)
    names = _short_names(comparison)
    return page.page("Runs compared", notes, [_table(comparison, names), _plots(comparison, names)])


def _short_names(comparison: Comparison) -> list[str]:
    """The runs' names: the last part of each path, and as many parts ahead as tell all of them apart."""
    paths = [PurePath(run.run).parts for run in comparison.runs]
    for count in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-count:]) for path in paths]
        if len({*names}) == len({*paths}):
            return names
    return ["/".join(path) for path in paths]


def _table(comparison: Comparison, names: list[str]) -> str:
    columns = ["<run", ">bits", ">size", ">top-1", ">oscillating", ">changed a step", ">training", ">seed"]
    columns += ["<model", "<recipe"]
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
    runs = list(zip(comparison.runs, names, map(look_of, range(len(names))), strict=True))
    measured = [(run, name, look) for run, name, look in runs if run.top1 is not None]
    sizes = [Dot(run.bytes / 1e6, run.top1 or 0.0, look.colour, look.marker, name) for run, name, look in measured]
    still = [
        Dot(100.0 * run.oscillating, run.top1 or 0.0, look.colour, look.marker, name)
        for run, name, look in measured
        if run.oscillating is not None
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
            Line(look.colour, _padded(run.epochs, key, factor, longest), look.dashed, look.marker)
            for run, _, look in runs
            if any(getattr(row, key) is not None for row in run.epochs)
        ]
        if lines:
            epochs = [float(number) for number in range(1, longest + 1)]
            svg = curves(epochs, lines, x_label="epoch", y_label=label, from_zero=key != "val_top1")
            plots.append((title, svg, ""))
    if not plots:
        return ""
    key = page.legend(page.Key(name, look.colour, look.dashed, look.sign) for _, name, look in runs)
    return page.section("Side by side", "Accuracy against cost, and the course of training.", key, page.cards(plots))


def _padded(rows: tuple[Epoch, ...], key: str, factor: float, length: int) -> list[float]:
    """Values for the epochs, with gaps for missing ones."""
    values = [getattr(row, key) for row in rows]
    known = [float("nan") if value is None else factor * value for value in values]
    return [*known, *[float("nan")] * (length - len(known))]
