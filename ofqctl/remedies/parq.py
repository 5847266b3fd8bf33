"""PARQ: weights that slide from float to their codes (Jin et al., ICML 2025, arXiv 2503.15748).

Training starts with weights that are float between the outermost values of their grid, and ends with quantized ones:
the staircase of rounding gets steeper from optimizer step to optimizer step. So a network finds its way to 2 bits and
below gradually, with the gradients of rounding throughout; it costs little more than rounding. Use it from the start of
a training; the grid steps should be computed from the weights or be near where they end, as weights slide to their
codes on the current grid. Follow it by some epochs at a tiny rate, in which weights are quantized.

Between two neighbouring points ``q_1 < q_2`` with threshold ``m``, a latent weight ``w`` computes as

    clamp(m + (w - m) / r, q_1, q_2)

with the inverse slope ``r`` of 1 (the weight itself) at the start, along a cosine to 0 (rounding) at the end; weights
outside of the grid are clipped. This is the proximal map of a piecewise-affine regularizer. What is evaluated and
written is always quantized.

Our decisions: gradients are those of the quantizer, so that a learned grid step goes on learning. During ``delay`` the
inverse slope is that of the start. For a merged query and key, the product slides.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import weight_sites
from ofqctl.quantizers import Quantizer, straight_through
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.schedule import Scheduled, ScheduledSettings


class Parq(ScheduledSettings):
    """Weights that slide from float to their codes (Jin et al. 2025).

    Attributes:
        start: Inverse slope of the staircase at the start: 1 computes with the weights themselves, 0 with codes.
        end: Inverse slope at the last optimizer step of the phase; it changes along a cosine.
        delay: Share of the phase's optimizer steps that pass before the inverse slope changes.
    """

    start: float = Field(default=1.0, ge=0.0, le=1.0)
    end: float = Field(default=0.0, ge=0.0, le=1.0)
    delay: float = Field(default=0.0, ge=0.0, lt=1.0)


@REMEDIES.register("parq", Parq, traits=["quantized_weights"])
class SlidingWeights(Scheduled):
    """Replaces the values of weight quantizers in training by values between latent weights and codes.

    Args:
        model: The quantized and calibrated model.
        settings: The inverse slope and its schedule.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: Parq, steps: int) -> None:
        super().__init__(settings.over(steps))
        self._start = settings.start
        quantizers = [site.weight_quantizer for _, site in weight_sites(model)]
        self._hooks = [quantizer.register_forward_hook(self._slide) for quantizer in quantizers if quantizer]

    @property
    def inverse_slope(self) -> float:
        """The inverse slope at the current optimizer step."""
        strength = self.strength
        return self._start if strength is None else strength

    def close(self) -> None:
        """Let weights be quantized."""
        for hook in self._hooks:
            hook.remove()

    def _slide(self, quantizer: Quantizer, inputs: tuple[Tensor], value: Tensor) -> Tensor | None:
        inverse = self.inverse_slope
        if not (quantizer.training and inverse):
            return None
        latent = inputs[0].detach()
        return straight_through(value, slid(latent, quantizer.encode(latent), inverse).to(value.dtype))


@torch.no_grad()
def slid(latent: Tensor, encoded: Encoded, inverse: float) -> Tensor:
    """Values between latent weights and their codes.

    Args:
        latent: Latent weights.
        encoded: Their codes, grid steps and grid.
        inverse: Inverse slope of the staircase, > 0 and at most 1.

    Returns:
        Values in the shape of ``latent``, float32.
    """
    grid, step = encoded.grid, encoded.step
    below = encoded.position(latent.float()).floor_().clamp_(grid.range.low, grid.range.high - 1)
    lower, upper = grid.points(below), grid.points(below + 1)
    own = grid.thresholds
    middle = (lower + upper) / 2 if own is None else own.to(lower)[below.to(torch.int64) - grid.range.low]
    return (middle + (latent.float() / step - middle) / inverse).clamp_(lower, upper).mul_(step)
