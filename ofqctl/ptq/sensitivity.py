"""How much each module of a quantized model costs by itself: the output's distance to the float model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.convert import operands, weight_site
from ofqctl.layers import WeightSite
from ofqctl.layers.attention import QuantAttention
from ofqctl.progress import Progress, silent
from ofqctl.ptq.units import Batches
from ofqctl.quantizers import Quantizer

Part = Literal["all", "weights", "activations"]


class Quantizers:
    """The quantizers of a converted model, to be taken out and put in again.

    Args:
        model: Converted and calibrated, in evaluation mode.
        names: Its planned modules.
        part: Which of their quantizers are meant.
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
        """Modules that have any of the quantizers meant."""
        of_weights = [name for name, *_ in self._weights] if self._part != "activations" else []
        of_operands = [name for name, *_ in self._operands] if self._part != "weights" else []
        return list(dict.fromkeys([*of_weights, *of_operands]))

    @contextmanager
    def only(self, name: str | None) -> Iterator[None]:
        """The model with these quantizers of one module alone; None leaves none."""
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
    """What quantizing one module costs.

    Attributes:
        module: Its name.
        bits: Of its quantizers.
        kl: Mean over the images of the divergence of the model's predictions from the float ones, in nats.
    """

    module: str
    bits: int
    kl: float


def sensitivities(
    model: nn.Module,
    names: Sequence[str],
    bits: int,
    images: Batches,
    *,
    part: Part = "all",
    progress: Progress = silent,
) -> list[Sensitivity]:
    """Quantize one module at a time and measure how far the model's predictions move.

    Args:
        model: Converted with ``bits`` and calibrated, in evaluation mode; left as it is.
        names: Modules to look at.
        bits: What to say of the quantizers.
        images: Normalized, (B, 3, H, W) each.
        part: Quantize weights, activations or all of a module.
        progress: Told after every module.
    """
    quantizers = Quantizers(model, names, part)
    with quantizers.only(None):
        expected = _predictions(model, images)
    found = []
    stage = f"sensitivity at {bits} bits"
    for done, name in enumerate(quantizers.names):
        progress(stage, done, len(quantizers.names))
        with quantizers.only(name):
            ours = _predictions(model, images)
        kl = F.kl_div(ours, expected, log_target=True, reduction="batchmean")
        found.append(Sensitivity(name, bits, max(0.0, float(kl))))
    progress(stage, len(quantizers.names), len(quantizers.names))
    return found


def _predictions(model: nn.Module, images: Batches) -> Tensor:
    """Logarithms of the predicted probabilities, (images, classes)."""
    with torch.no_grad():
        return torch.cat([model(batch).float().log_softmax(dim=1) for batch in images])
