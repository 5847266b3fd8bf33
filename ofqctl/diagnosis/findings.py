"""Explain the figures in words, and name the recipe option that addresses them."""

from collections.abc import Iterator, Sequence

from ofqctl.diagnosis.summing import summary_of
from ofqctl.oscillation import Role
from ofqctl.recipe import Recipe
from ofqctl.results.analyze_oscillation import Change, Epoch, Finding, Live, Report
from ofqctl.results.layers import AnalyzedLayer

AT_REST = 1e-4  # share of the codes that flip in an optimizer step; below this, codes count as settled
_LOW_BITS = 4  # with more bits, grid steps are so small that oscillation changes little
_CGA = "training.phases.N.cga"
ROLE_WORDS: dict[Role, str] = {
    "q": "the query projections",
    "k": "the key projections",
    "v": "the value projections",
    "qk": "the merged query-key products",
    "proj": "the output projections of attention",
    "fc1": "the first layers of the MLPs",
    "fc2": "the second layers of the MLPs",
    "patch": "the patch embedding",
    "head": "the classifier",
    "other": "other layers",
}


def findings_of(
    report: Report, recipe: Recipe | None, changes: Sequence[Change] = (), live: Live | None = None
) -> tuple[Finding, ...]:
    """The findings on a checkpoint, most important first."""
    low = [layer for layer in report.layers if layer.bits <= _LOW_BITS]
    found = [
        *_oscillation(report, recipe),
        *_annealing(report),
        *_query_and_key(report),
        *_thresholds(report),
        *_codes(low),
        *_trend(changes),
        *_live(live),
    ]
    return tuple(found)


def percent(share: float) -> str:
    """A share in percent, with as many digits as it needs."""
    value = 100.0 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 1 else f"{value:.2g} %" if value else "0 %"


def _oscillation(report: Report, recipe: Recipe | None) -> Iterator[Finding]:
    if not any(layer.tracked for layer in report.layers):
        live = ", or take training steps from this checkpoint with --data" if report.kind == "training state" else ""
        yield Finding(
            text="This file does not show whether weights oscillate, because flips of codes were not counted.",
            advice=f"Train with the tracker on{live}.",
            option="training.tracking",
        )
        return
    low = [layer for layer in report.layers if layer.bits <= _LOW_BITS]
    total = summary_of(low or report.layers)
    share, flips = total.oscillating or 0.0, total.flips_per_step or 0.0
    roles = {layer.role: report.roles[layer.role].oscillating or 0.0 for layer in low or report.layers}
    role = max(roles, key=lambda name: roles[name])
    worst = max(low or report.layers, key=_oscillating)
    some = "of the weights" if len(low) in (0, len(report.layers)) else f"of the weights of at most {_LOW_BITS} bits"
    text = (
        f"{percent(share)} {some} oscillate: their code flips back more than once in {1 / report.threshold:.0f} steps. "
        f"Most of them are in {ROLE_WORDS[role]} ({percent(roles[role])}); "
        f"the layer with the largest share is {worst.title} ({percent(_oscillating(worst))}). "
        f"In the latest optimizer steps, {percent(flips)} of the codes changed in each step."
    )
    advice, option = _remedy(flips, recipe)
    yield Finding(text=text, advice=advice, option=option)
    yield from _high_bits([layer for layer in report.layers if layer.bits > _LOW_BITS], share)


def _high_bits(high: Sequence[AnalyzedLayer], share: float) -> Iterator[Finding]:
    """Findings on layers with many bits, whose codes flip more but matter less."""
    if not high or max(map(_oscillating, high)) < max(0.05, 2 * share):
        return
    worst = max(high, key=_oscillating)
    text = f"{worst.title} has {worst.bits} bits, and {percent(_oscillating(worst))} of its weights oscillate."
    advice = "On such a fine grid a flip changes a weight very little, so this hardly matters."
    yield Finding(text=text, advice=advice)


def _remedy(flips: float, recipe: Recipe | None) -> tuple[str, str | None]:
    """Advice on oscillating weights, and the recipe option for it."""
    phases = recipe.training.phases if recipe and recipe.training else ()
    if flips < AT_REST:
        return "The codes have settled; the frequencies still reflect earlier steps. Nothing needs to be done.", None
    if any("cga" in phase.remedies for phase in phases):
        advice = "There is already an annealing phase; a lower learning rate in it lets the remaining codes settle."
        return advice, "training.phases.N.lr"
    advice = (
        "End the training with a phase of confidence-guided annealing, which freezes every code that is not near a "
        "threshold. During training, `freezing` fixes codes that flip too often, and `dampening` keeps weights away "
        "from the thresholds."
    )
    return advice, _CGA


def _annealing(report: Report) -> Iterator[Finding]:
    """Findings on the effect of the CGA phase, from the training's summary."""
    counted = [row for row in report.epochs if row.flips_per_step is not None]
    before = [row for row in counted if row.phase not in report.annealing]
    after = [row for row in counted if row.phase in report.annealing]
    if not before or not after:
        return
    one, other = before[-1], after[-1]
    text = f"Annealing changed codes that flip in a step {_from_to(one.flips_per_step, other.flips_per_step)}"
    text += f", oscillating weights {_from_to(one.oscillating, other.oscillating)}{_accuracy(one, other)}."
    advice = "A control run without `cga` in that phase shows how much of this is due to the small learning rate."
    yield Finding(text=text, advice=advice, option=_CGA)


def _accuracy(before: Epoch, after: Epoch) -> str:
    if before.val_top1 is None or after.val_top1 is None:
        return ""
    return f", top-1 from {before.val_top1:.2f} to {after.val_top1:.2f} %"


def _from_to(before: float | None, after: float | None) -> str:
    return f"from {percent(before or 0.0)} to {percent(after or 0.0)}"


def _query_and_key(report: Report) -> Iterator[Finding]:
    """Findings on query and key, which drive each other's oscillation when quantized separately."""
    shares = {
        layer.role: report.roles[layer.role].oscillating or 0.0 for layer in report.layers if layer.bits <= _LOW_BITS
    }
    both = [shares.pop(role, 0.0) for role in ("q", "k")]
    if not shares or max(both) < 1.3 * max(shares.values()) or not max(both):
        return
    yield Finding(
        text="Query and key oscillate more than any other layers: each changes the logits of the other.",
        advice="Query-key reparameterization quantizes their product instead.",
        option="attention.qkr",
    )


def _thresholds(report: Report) -> Iterator[Finding]:
    total = report.total
    if total.within is None:
        return
    near = total.within["0.005"]
    even = 2 * 0.005  # share of uniformly spread weights within 0.005 grid steps of a threshold
    if near > 1.5 * even:
        text = f"{percent(near)} of the weights lie within 0.005 grid steps of a threshold; 1 % would be even."
        advice = "Weights accumulate at the thresholds around which they oscillate; dampening pulls them away."
        yield Finding(text=text, advice=advice, option="training.phases.N.dampening")
    worst = max((layer for layer in report.layers if layer.latents), key=_clipped)
    if _clipped(worst) > 0.25:
        text = (
            f"{percent(_clipped(worst))} of the weights of {worst.title} lie outside of the grid, so they cannot flip."
        )
        advice = "Its grid steps are small for its weights. StatsQ computes them from the weights."
        yield Finding(text=text, advice=advice, option="weights.method")


def _codes(low: Sequence[AnalyzedLayer]) -> Iterator[Finding]:
    if not low:
        return
    weights = sum(layer.weights for layer in low)
    bits = sum(layer.bits * layer.weights for layer in low) / weights
    entropy = sum(layer.codes.entropy * layer.weights for layer in low) / weights
    if entropy < 0.8 * bits:
        text = f"Codes carry {entropy:.2f} bits of information but take {bits:.2f} bits."
        advice = "Some codes are hardly used. StatsQ spreads the weights over all of them."
        yield Finding(text=text, advice=advice, option="weights.method")
    worst = max(low, key=lambda layer: layer.codes.unused)
    if worst.codes.unused > 0.05:
        text = (
            f"In {worst.title}, {percent(worst.codes.unused)} of the codes of a channel are dead: no weight uses them."
        )
        if worst.method == "statsq":
            yield Finding(text=text, advice="It would lose little with fewer bits.", option="layers.N.weights.bits")
        else:
            yield Finding(text=text, advice="StatsQ uses all of them.", option="weights.method")


def _trend(changes: Sequence[Change]) -> Iterator[Finding]:
    if not changes:
        return
    last = changes[-1]
    words = {"more": "more than", "less": "less than", "equal": "as much as"}
    compared = f", {words[last.trend]} between the previous two checkpoints" if last.trend else ""
    worst = max(last.layers, key=lambda layer: layer.codes_changed)
    text = f"{percent(last.codes_changed)} of the codes differ between the last two checkpoints{compared}; most do in "
    text += f"{worst.title} ({percent(worst.codes_changed)})."
    advice = "Codes that keep changing while accuracy no longer improves should be frozen."
    yield Finding(text=text, advice=advice, option=_CGA)


def _live(live: Live | None) -> Iterator[Finding]:
    if live is None:
        return
    total = live.total
    text = f"In {len(live.steps)} live steps {percent(total.flips_per_step)} of the codes changed in each step, "
    text += f"{percent(total.oscillations_per_step)} back to their previous code."
    if total.sign_agreement is not None:
        text += f" {percent(total.sign_agreement)} of the gradients kept their sign from one step to the next."
    advice = "Noise alone gives about half; clearly less means that the loss pushes weights back and forth."
    yield Finding(text=text, advice=advice)
    if live.activations_changed is None or not live.activations:
        return
    low = [activation for activation in live.activations if activation.bits <= _LOW_BITS] or live.activations
    worst = max(low, key=lambda activation: activation.changed)
    text = f"On the same images {percent(live.activations_changed)} of the activation codes changed in each step, most "
    text += f"in {worst.name}, {worst.operand} ({percent(worst.changed)})."
    advice = "These add to the changes of weights. More bits for that operand, by an exception under `layers`, help."
    yield Finding(text=text, advice=advice, option="layers.N.activations.bits")


def _oscillating(layer: AnalyzedLayer) -> float:
    return layer.tracked.oscillating if layer.tracked else 0.0


def _clipped(layer: AnalyzedLayer) -> float:
    return layer.latents.clipped if layer.latents else 0.0
