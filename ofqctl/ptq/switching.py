"""Other modules in place of a model's quantizers, for a while: nothing, what counts, or what looks at gradients."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ofqctl.convert import operand_holder, operands, weight_site
from ofqctl.layers import WeightSite
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import Plan

Quantized = Literal["weights", "activations"]


class Quantizers:
    """Puts other modules in place of the quantizers of a converted model, for the time of a block.

    Args:
        model: The converted and calibrated model, in evaluation mode.
        plan: The plan that it was converted by.
    """

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self.weights: list[tuple[str, WeightSite, Quantizer]] = []
        self.operands: list[tuple[str, nn.Module, str, Quantizer]] = []
        for name in plan.modules:
            module = model.get_submodule(name)
            site = weight_site(module)
            if site is not None and site.weight_quantizer is not None:
                self.weights.append((name, site, site.weight_quantizer))
            self.operands += [(name, operand_holder(module), operand, q) for operand, q in operands(module).items()]

    def names(self, *parts: Quantized) -> list[str]:
        """Names of the modules that have quantizers of these parts."""
        of_weights = [name for name, *_ in self.weights] if "weights" in parts else []
        of_operands = [name for name, *_ in self.operands] if "activations" in parts else []
        return list(dict.fromkeys([*of_weights, *of_operands]))

    @contextmanager
    def only(self, *, weights: Collection[str] = (), activations: Collection[str] = ()) -> Iterator[None]:
        """Quantize the weights and the activations of these modules and no others."""

        def chosen(name: str, quantizer: Quantizer, part: Quantized) -> nn.Module:
            return quantizer if name in (weights if part == "weights" else activations) else nn.Identity()

        with self.replaced(chosen):
            yield

    @contextmanager
    def replaced(self, by: Callable[[str, Quantizer, Quantized], nn.Module]) -> Iterator[None]:
        """Put in place of every quantizer what ``by`` makes of its module's name, itself and what it quantizes."""
        try:
            for name, site, quantizer in self.weights:
                site.weight_quantizer = by(name, quantizer, "weights")  # type: ignore[assignment]
            for name, holder, operand, quantizer in self.operands:
                setattr(holder, operand, by(name, quantizer, "activations"))
            yield
        finally:
            for _, site, quantizer in self.weights:
                site.weight_quantizer = quantizer
            for _, holder, operand, quantizer in self.operands:
                setattr(holder, operand, quantizer)


@dataclass(frozen=True)
class Content:
    """What the quantizers of one module hold.

    Attributes:
        numbers: How many numbers; of activations, for one image.
        bits: Bits of their codes together.
    """

    numbers: int
    bits: int


class _Counter(nn.Module):
    """Passes its input on, and counts the numbers in it; in a module that is called several times, of one call."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def forward(self, x: Tensor) -> Tensor:
        self.numbers = x.numel()
        return x


def contents(model: nn.Module, plan: Plan, part: Quantized, size: tuple[int, int, int]) -> dict[str, Content]:
    """What weights or activations of each module hold.

    Args:
        model: The converted model, in evaluation mode.
        plan: The plan that it was converted by.
        part: Weights or activations.
        size: Size of one image.
    """
    counters: list[tuple[str, _Counter, int]] = []

    def counted(name: str, quantizer: Quantizer, of: Quantized) -> nn.Module:
        counter = _Counter()
        if of == part:
            counters.append((name, counter, quantizer.plan.bits))
        return counter

    with Quantizers(model, plan).replaced(counted), torch.no_grad():
        model(torch.zeros(1, *size, device=next(model.parameters()).device))
    found: dict[str, Content] = {}
    for name, counter, bits in counters:
        before = found.get(name, Content(0, 0))
        found[name] = Content(before.numbers + counter.numbers, before.bits + counter.numbers * bits)
    return found
