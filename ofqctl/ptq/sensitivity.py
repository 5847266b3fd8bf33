"""Sensitivity of each module: how much quantizing it alone changes the output of the model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ofqctl.convert import operands, weight_site
from ofqctl.layers import WeightSite
from ofqctl.layers.attention import QuantAttention
from ofqctl.models.outputs import check_output
from ofqctl.progress import Progress, silent
from ofqctl.ptq.divergence import divergence, measure_of
from ofqctl.ptq.units import Batches
from ofqctl.quantizers import Quantizer

Part = Literal["all", "weights", "activations"]


class Quantizers:
    """Switches the quantizers of a converted model off and on.

    Args:
        model: The converted and calibrated model, in evaluation mode.
        names: Names of its planned modules.
        part: Which quantizers to use: of weights, of activations, or all.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], part: Part) -> None:
        self._weights: list[tuple[str, WeightSite, Quantizer]] = []
        self._operands: list[tuple[str, nn.Module, str, Quantizer]] = []
        for name in names:
            module = model.get_submodule(name)
            site = weight_site(module)
            if site is not None and site.weight_quantizer is not None:
                self._weights.append((name, site, site.weight_quantizer))
            holder = module.products if isinstance(module, QuantAttention) else module
            self._operands += [(name, holder, operand, q) for operand, q in operands(module).items()]
        self._part = part

    @property
    def names(self) -> list[str]:
        """Names of the modules that have such quantizers."""
        of_weights = [name for name, *_ in self._weights] if self._part != "activations" else []
        of_operands = [name for name, *_ in self._operands] if self._part != "weights" else []
        return list(dict.fromkeys([*of_weights, *of_operands]))

    @contextmanager
    def only(self, name: str | None) -> Iterator[None]:
        """Switch on the quantizers of one module and no others; None switches all off."""
        for module, site, quantizer in self._weights:
            site.weight_quantizer = quantizer if module == name and self._part != "activations" else None
        for module, holder, operand, quantizer in self._operands:
            chosen = module == name and self._part != "weights"
            setattr(holder, operand, quantizer if chosen else nn.Identity())
        try:
            yield
        finally:
            for _, site, quantizer in self._weights:
                site.weight_quantizer = quantizer
            for _, holder, operand, quantizer in self._operands:
                setattr(holder, operand, quantizer)


@dataclass(frozen=True)
class Sensitivity:
    """How much quantizing one module changes the output.

    Attributes:
        module: Name of the module.
        bits: Bits of its quantizers.
        damage: Mean distance of the model's outputs from the float ones, by the model's `measure_of`.
    """

    module: str
    bits: int
    damage: float


def sensitivities(
    model: nn.Module,
    names: Sequence[str],
    bits: int,
    images: Batches,
    *,
    part: Part = "all",
    progress: Progress = silent,
) -> list[Sensitivity]:
    """Quantize one module at a time and measure how much the model's output changes.

    Args:
        model: The model, converted with ``bits`` and calibrated, in evaluation mode; unchanged afterwards.
        names: Names of the modules to measure.
        bits: Bits of the quantizers, recorded in the results.
        images: Normalized images, (B, 3, H, W) each.
        part: Whether to quantize a module's weights, its activations or all of it.
        progress: Called before every module and at the end.
    """
    quantizers, measure = Quantizers(model, names, part), measure_of(model)
    with quantizers.only(None):
        expected = _outputs(model, images)
    found = []
    work = f"sensitivity at {bits} bits"
    for done, name in enumerate(quantizers.names):
        progress(work, done, len(quantizers.names))
        with quantizers.only(name):
            ours = _outputs(model, images)
        found.append(Sensitivity(name, bits, float(divergence(ours, expected, measure))))
    progress(work, len(quantizers.names), len(quantizers.names))
    return found


def _outputs(model: nn.Module, images: Batches) -> Tensor:
    """Outputs of the model, float32, (images, classes or features)."""
    with torch.no_grad():
        return torch.cat([check_output(model(batch), batch) for batch in images])
