"""Oscillation-inducing regularization: weights that survive any width (Wenshøj et al., TMLR 2025, arXiv 2502.00490).

The model is trained in float, with a penalty that moves each weight towards the threshold between two levels of a
coarse grid. Such weights are as far from every level as they can be, and the model learns to work nevertheless; rounded
to another width later, it loses less than one that was trained for a single width. One training for several widths, at
the cost of a float training; at the width that others are trained for, those are better at 2 bits.

The penalty is ``weight * sum over layers of mean(q(w)**2 - w**2)``, with ``q(w) = s * round(w / s)`` and ``s = max|w| /
(2**(bits - 1) - 1)``, a step for each layer. With the step held, its gradient is ``2 * weight / N * (q(w) - w)``
(rounding passes gradients straight through): descent moves ``w`` away from its level. The step gets no gradient, as the
largest weight would get that of all. Published: ResNet-18 and a small ViT on CIFAR-10 and Tiny-ImageNet, equal to
quantization- aware training at 3 and 4 bits, better at widths that were not trained for, behind it when ternary.

``ofqctl evaluate RUN --wbits 2,3,4,8`` measures its weights at several widths; `weight` must be searched over decades.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.errors import RecipeError
from ofqctl.grids import SMALLEST_STEP
from ofqctl.layers import weight_sites
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.remedy import Remedy, RemedySettings


class OscReg(RemedySettings):
    """Oscillation-inducing regularization of float weights.

    Attributes:
        weight: Weight of the penalty in the loss.
        bits: Width of the grid whose thresholds weights are moved to; 2 bits are ternary.
    """

    weight: float = Field(default=1.0, gt=0.0)
    bits: int = Field(default=3, ge=2, le=8)


@REMEDIES.register("oscreg", OscReg)
class OscillationPenalty(Remedy):
    """Adds the penalty of all Linear and convolution weights that are trained.

    Args:
        model: The model, whose weights are not quantized.
        settings: Strength and grid.
        steps: Number of optimizer steps in the phase; not used.
    """

    def __init__(self, model: nn.Module, settings: OscReg, steps: int) -> None:  # noqa: ARG002
        self._layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        self._weight, self._levels = settings.weight, (1 << (settings.bits - 1)) - 1

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:  # noqa: ARG003
        """Check that the weights of ``model`` are not quantized.

        Raises:
            RecipeError: Some are.
        """
        quantized = next(weight_sites(model), None)
        if quantized is not None:
            raise RecipeError(
                f"oscreg: is for training in float, and {quantized[0]} is quantized",
                hint="`weights: {bits: 32}`, also of `first` and `last`, leaves weights in float",
            )

    def penalty(self) -> Tensor | None:
        """The penalty, with the gradient that moves weights away from their levels."""
        parts = [self._of(layer.weight) for layer in self._layers if layer.weight.requires_grad]
        return self._weight * torch.stack(parts).sum() if parts else None

    def _of(self, weight: Tensor) -> Tensor:
        held = weight.detach()
        step = (held.abs().amax() / self._levels).clamp(min=SMALLEST_STEP)
        rounded = weight + ((held / step).round() * step - held)  # straight through
        return (rounded.square() - weight.square()).mean()
