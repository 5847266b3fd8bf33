"""The page of ``analyze-oscillation``: findings, layers, and changes over time."""

import re
from collections.abc import Iterable, Sequence
from html import escape

from ofqctl.diagnosis.findings import ROLE_WORDS, percent
from ofqctl.oscillation import ROLES
from ofqctl.reports import page
from ofqctl.reports.over_time import changes_section, live_section, paths_section, training_section
from ofqctl.reports.plots import histogram
from ofqctl.reports.roles import DRAWN_BITS, drawn
from ofqctl.results.analyze_oscillation import Analysis, Finding, Report
from ofqctl.results.layers import AnalyzedLayer, Histogram

_TOP = 12  # number of rows of a table
_BLOCK = re.compile(r"^(.*?\d+)\.(?!.*\.\d+\.)")  # up to the last number in a name


def oscillation_page(analysis: Analysis) -> str:
    """The HTML document."""
    report = analysis.checkpoints[-1]
    parts = [
        _tiles(report),
        _findings(analysis.findings),
        _heat(report),
        training_section(report),
        paths_section(report),
        _positions(report),
        _worst(report),
        changes_section(analysis.changes, report),
        live_section(analysis.live),
        _words(report),
    ]
    return page.page("Oscillation of weights", _lead(analysis), parts)


def _lead(analysis: Analysis) -> str:
    report = analysis.checkpoints[-1]
    about = [report.model, report.recipe and f"recipe {report.recipe}", report.kind]
    about += [f"{report.steps} optimizer steps tracked" if report.steps else None]
    lines = [f"<code>{escape(report.path)}</code><br>{escape(', '.join(part for part in about if part))}"]
    if len(analysis.checkpoints) > 1:
        lines.append(f"The last of {len(analysis.checkpoints)} checkpoints.")
    lines += [f"Unknown: {escape(what)}. {escape(page.sentence(why))}" for what, why in report.missing.items()]
    lines += [escape(page.sentence(note)) for note in analysis.notes]
    return "<br>".join(lines)


def _tiles(report: Report) -> str:
    total = report.total
    figures = {
        "of the weights oscillate": total.oscillating,
        "of the codes change in a step": total.flips_per_step,
        "of the codes never changed": total.never_flipped,
        "of the codes are not those at the start": total.moved,
        f"of the weights are confident (beyond {report.boundary_range:g} grid steps)": total.confident,
        "of the weights lie outside of the grid": total.clipped,
    }
    shown = {words: percent(value) for words, value in figures.items() if value is not None}
    shown[f"bits of information in a code of {total.bits:.2g} bits"] = f"{total.entropy:.2f}"
    return page.tiles(shown)


def _findings(findings: Iterable[Finding]) -> str:
    items = [(one.text, one.advice + (f" `{one.option}`" if one.option else "")) for one in findings]
    body = page.findings(items)
    return page.section("Findings", "With the recipe options that address them.", body)


def _heat(report: Report) -> str:
    """Blocks by roles; layers with many bits do not affect the colour scale, because their codes always move more."""
    tracked = report.layers[0].tracked is not None
    if not tracked and report.layers[0].latents is None:
        return ""
    values = [(layer, _heat_value(layer)) for layer in report.layers]
    low = [value for layer, value in values if layer.bits <= DRAWN_BITS]
    scale = max(low or [value for _, value in values])
    rows: dict[str, dict[str, tuple[float, str]]] = {}
    for layer, value in values:
        cell = (value / scale if scale else 0.0), percent(value)
        rows.setdefault(_block(layer.name), {}).setdefault(layer.role, cell)
    columns = [role for role in ROLES if any(role in cells for cells in rows.values())]
    lead = (
        "Share of the weights of each layer that oscillate."
        if tracked
        else ("Share of the weights of each layer that lie within 0.005 grid steps of a threshold.")
    )
    if low and len(low) < len(values) and scale:
        lead += f" The shades end at {percent(scale)}, the largest share at {DRAWN_BITS} bits or less."
    return page.section("Where", lead, page.heat_map(columns, rows, "block"))


def _heat_value(layer: AnalyzedLayer) -> float:
    if layer.tracked is not None:
        return layer.tracked.oscillating
    return layer.latents.within["0.005"] if layer.latents else 0.0


def _block(name: str) -> str:
    found = _BLOCK.match(name)
    return found[1] if found else "outside the blocks"


def _positions(report: Report) -> str:
    """Histograms of latent weights by role, with thresholds."""
    plots = []
    for role in drawn(report):
        layers = [layer for layer in report.layers if layer.role == role and layer.latents and layer.bits <= DRAWN_BITS]
        shapes = {(la.latents.positions.low, la.latents.positions.high) for la in layers if la.latents}
        if len(shapes) != 1:
            continue
        edges, shares, thresholds = _pooled([layer.latents.positions for layer in layers if layer.latents])
        near = report.roles[role].within or {}
        caption = f"{percent(near.get('0.005', 0.0))} within 0.005 steps of a threshold."
        svg = histogram(edges, shares, thresholds, x_label="position in grid steps; codes at integers")
        plots.append((page.sentence(ROLE_WORDS[role]).rstrip("."), svg, caption))
    lead = "Latent weights of all layers of a role, in grid steps; codes change at the dashed lines."
    return page.section("Latent weights and thresholds", lead, page.cards(plots)) if plots else ""


def _pooled(histograms: Sequence[Histogram]) -> tuple[list[float], list[float], list[float]]:
    """Edges, shares and thresholds of several histograms with the same bins."""
    first = histograms[0]
    bins, counts = len(first.counts), [sum(column) for column in zip(*(h.counts for h in histograms), strict=True)]
    width = (first.high - first.low) / bins
    edges = [first.low + width * number for number in range(bins + 1)]
    thresholds = [first.low + 2.0 + number for number in range(round(first.high - first.low) - 3)]
    return edges, [count / max(1, sum(counts)) for count in counts], thresholds


def _worst(report: Report) -> str:
    layers = sorted(report.layers, key=_heat_value, reverse=True)[:_TOP]
    rows = []
    for layer in layers:
        tracked, latents = layer.tracked, layer.latents
        channels = ", ".join(str(channel.index) for channel in tracked.channels[:3]) if tracked else ""
        spread = " – ".join(f"{layer.step[level]:.2g}" for level in ("0", "0.5", "1"))
        cells = [
            percent(tracked.oscillating) if tracked else "",
            percent(tracked.flips_per_step) if tracked else "",
            percent(latents.within["0.005"]) if latents else "",
            percent(latents.clipped) if latents else "",
            percent(layer.codes.unused),
            f"{layer.codes.entropy:.2f} of {layer.bits}",
            spread,
            channels,
        ]
        rows.append([layer.title, *cells])
    columns = ["<layer", ">oscillating", ">changed a step", ">within 0.005", ">clipped", ">dead codes", ">bits used"]
    columns += [">grid steps: min – median – max", ">worst channels"]
    kept = [0, *(n for n in range(1, len(columns)) if any(row[n] for row in rows))]
    body = page.table([columns[n] for n in kept], [[row[n] for n in kept] for row in rows])
    lead = (
        "Layers that oscillate most." if report.layers[0].tracked else "Layers with the most weights near a threshold."
    )
    return page.section("Layers", lead, body)


def _words(report: Report) -> str:
    words = {
        "code, step": "A quantized weight is step × (code + offset); its position is its float value in grid steps.",
        "threshold": "The point halfway between two codes, where the code changes.",
        "flip": "A code that an optimizer step changed; an oscillation is a flip back.",
        "oscillates": f"A weight whose moving average of oscillations is above {report.threshold:g}.",
        "confident": f"A weight farther than {report.boundary_range:g} grid steps from every threshold.",
        "never changed": "A code that never changed since tracking began.",
        "moved": "A code that is not the one at the start; so of the sign and the magnitude of its point.",
        "dead codes": "Codes of the grid that no weight of a channel has.",
        "bits used": "Entropy of the codes of a layer.",
    }
    return page.section("Words", "Terms as they are used here.", page.definitions(words))
