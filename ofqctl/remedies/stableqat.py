"""StableQAT: a gradient of rounding that knows where the thresholds are (Chen et al., 2026, arXiv 2601.19320).

Straight-through gradients move all weights of a bin alike. Here those near the centre of their bin get little gradient
and those near a threshold the whole of it, as on a smoothed staircase: codes that are settled stay, and the others are
decided. Use it at 2 to 4 bits from the start of a training. It costs about as much as quantizing the weights once
more.

With ``v`` a weight in grid steps, the gradient of rounding is

    (1 - c) / (1 + c),   c = A * sqrt(2) * pi * cos(pi * (v + round(v))),   A = 0.21

the slope of a rotated Fourier series of the staircase: 0.03 at the centre of a bin and 1 at a threshold; ``A = 0`` is
straight-through. Grid steps learn as before, and weights alone, not activations, as in the authors' program.

Our decisions: ``v`` is the continuous code, so that any grid will do. The slope multiplies the quantizer's own
gradient, which stays what it is beyond the outermost bins. For a merged query and key, it multiplies the gradient of
the product.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.layers import weight_sites
from ofqctl.quantizers import Quantizer, straight_through
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.remedy import Remedy, RemedySettings


class StableQAT(RemedySettings):
    """A smooth gradient of rounding for weights (Chen et al. 2026).

    Attributes:
        amplitude: Amplitude of the wave, from 0 (straight-through) to less than ``1 / (sqrt(2) * pi)``.
    """

    amplitude: float = Field(default=0.21, ge=0.0, lt=1.0 / (math.sqrt(2.0) * math.pi))


@REMEDIES.register("stableqat", StableQAT, traits=["quantized_weights"])
class SmoothGradients(Remedy):
    """Multiplies the gradients that weight quantizers pass on by the slope of a smooth staircase.

    Args:
        model: The quantized and calibrated model.
        settings: The amplitude.
        steps: Number of optimizer steps in the phase; not used.
    """

    def __init__(self, model: nn.Module, settings: StableQAT, steps: int) -> None:  # noqa: ARG002
        self._amplitude = settings.amplitude
        quantizers = [site.weight_quantizer for _, site in weight_sites(model)]
        self._hooks = [quantizer.register_forward_pre_hook(self._smooth) for quantizer in quantizers if quantizer]

    def close(self) -> None:
        """Let gradients pass straight through."""
        for hook in self._hooks:
            hook.remove()

    def _smooth(self, quantizer: Quantizer, inputs: tuple[Tensor]) -> Tensor | None:
        (latent,) = inputs
        if not latent.requires_grad:
            return None
        with torch.no_grad():
            encoded = quantizer.encode(latent)
            away = (encoded.position(latent.float()) - encoded.codes).clamp_(-0.5, 0.5)
            wave = (self._amplitude * math.sqrt(2.0) * math.pi) * torch.cos(math.pi * away)
            slope = (1.0 - wave).div_(1.0 + wave).to(latent.dtype)
        return straight_through(latent * slope, latent.detach())
