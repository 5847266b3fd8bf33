"""Sensitivity of each module: how much quantizing it alone changes the output of the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ofqctl.errors import RecipeError
from ofqctl.models.outputs import check_output
from ofqctl.progress import Progress, silent
from ofqctl.ptq import divergence as outputs
from ofqctl.ptq.expansion import Told, estimates
from ofqctl.ptq.switching import Quantized, Quantizers
from ofqctl.ptq.units import Batches
from ofqctl.recipe import Plan

Part = Literal["all", "weights", "activations"]
Measure = Literal["kl", "gradient", "fisher"]
"""How sensitivities are found: ``kl`` measures the output, a pass of all images for every module; the others estimate
it from gradients, in one pass for all modules: ``fisher`` by the second-order term of the loss, ``gradient`` by the
first and the second."""


@dataclass(frozen=True)
class Sensitivity:
    """How much quantizing one module changes the output.

    Attributes:
        module: Name of the module.
        bits: Bits of its quantizers.
        damage: Mean distance of the model's outputs from the float ones, by the model's `measure_of`; an estimate of a
            change of the loss may be negative.
    """

    module: str
    bits: int
    damage: float


def check_measure(measure: Measure, unit: outputs.Measure) -> None:
    """Refuse a measure that outputs of this kind have not.

    Raises:
        RecipeError: Embeddings have no loss whose gradient is not 0 where nothing is quantized.
    """
    if measure == "gradient" and unit != "kl":
        raise RecipeError(
            "--measure gradient: needs predictions; this model gives embeddings", hint="--measure kl or fisher"
        )


def sensitivities(
    model: nn.Module,
    plan: Plan,
    bits: int,
    images: Batches,
    *,
    names: Sequence[str] | None = None,
    part: Part = "all",
    measure: Measure = "kl",
    progress: Progress = silent,
) -> list[Sensitivity]:
    """Quantize one module at a time and measure, or estimate, how much the model's output changes.

    Args:
        model: The model, converted with ``bits`` and calibrated, in evaluation mode; unchanged afterwards.
        plan: The plan that it was converted by.
        bits: Bits of the quantizers, recorded in the results.
        images: Normalized images, (B, 3, H, W) each.
        names: Names of the modules to measure; None for all.
        part: Whether to quantize a module's weights, its activations or all of it.
        measure: How it is found.
        progress: Called before every module, or every image, and at the end.

    Raises:
        RecipeError: The model's outputs do not have the measure.
    """
    unit = outputs.measure_of(model)
    check_measure(measure, unit)
    quantizers, work = Quantizers(model, plan), f"sensitivity at {bits} bits"
    parts: tuple[Quantized, ...] = ("weights", "activations") if part == "all" else (part,)
    chosen = [name for name in quantizers.names(*parts) if names is None or name in names]
    if measure == "kl":
        found = _measured(model, quantizers, chosen, parts, images, lambda *done: progress(work, *done))
    else:
        first = measure == "gradient"
        found = estimates(model, quantizers, parts, images, lambda *done: progress(work, *done), first_order=first)
    return [Sensitivity(name, bits, found[name]) for name in chosen]


def _measured(
    model: nn.Module,
    quantizers: Quantizers,
    names: Sequence[str],
    parts: Sequence[Quantized],
    images: Batches,
    told: Told,
) -> dict[str, float]:
    """The sensitivities of ``names``."""
    unit = outputs.measure_of(model)
    with quantizers.only():
        expected = _outputs(model, images)
    found = {}
    for done, name in enumerate(names):
        told(done, len(names))
        with quantizers.only(**{key: [name] for key in parts}):
            found[name] = float(outputs.divergence(_outputs(model, images), expected, unit))
    told(len(names), len(names))
    return found


def damage_together(
    model: nn.Module, plan: Plan, images: Batches, *, weights: Sequence[str] = (), activations: Sequence[str] = ()
) -> float:
    """How much the output changes when all of these modules are quantized at once.

    Args:
        model: The converted and calibrated model, in evaluation mode; unchanged afterwards.
        plan: The plan that it was converted by.
        images: Normalized images, (B, 3, H, W) each.
        weights: Modules whose weights are quantized.
        activations: Modules whose activations are quantized.
    """
    quantizers = Quantizers(model, plan)
    with quantizers.only():
        expected = _outputs(model, images)
    with quantizers.only(weights=weights, activations=activations):
        ours = _outputs(model, images)
    return float(outputs.divergence(ours, expected, outputs.measure_of(model)))


def _outputs(model: nn.Module, images: Batches) -> Tensor:
    """Outputs of the model, float32, (images, classes or features)."""
    with torch.no_grad():
        return torch.cat([check_output(model(batch), batch) for batch in images])
