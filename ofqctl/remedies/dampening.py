"""Oscillation dampening (Nagel et al., ICML 2022, arXiv 2203.11086).

A penalty pulls each weight to the centre of its bin, away from the thresholds at which its code changes (Eq. 5 of the
paper). Gentler than freezing, as no code is ever fixed; it also keeps weights from moving on, so it starts late.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.holding import encode
from ofqctl.remedies.penalty import LatentPenalty
from ofqctl.remedies.schedule import ScheduledSettings


class Dampening(ScheduledSettings):
    """Oscillation dampening (Nagel et al. 2022): a penalty pulls latent weights to the centres of their bins.

    Attributes:
        start: Weight of the penalty in the loss when it starts.
        end: Weight of the penalty at the last optimizer step of the phase; it changes along a cosine.
        delay: Share of the phase's optimizer steps that pass before the penalty starts.
        reduction: How the squared distances of a layer's weights are combined: ``sum`` (as published) or ``mean``.
    """

    start: float = Field(default=0.0, ge=0.0)
    end: float = Field(default=0.1, gt=0.0)
    reduction: Literal["sum", "mean"] = "sum"


@REMEDIES.register("dampening", Dampening)
class DampeningPenalty(LatentPenalty):
    """Pulls latent weights to the centres of their bins, away from the thresholds at which their codes change.

    The penalty is ``lambda * sum over all weights of (sg(w_q) - clip(w, grid))^2``, with ``w`` the latent weight,
    ``w_q`` its quantized value, and clipping to the outermost values of the grid, so that weights outside of the grid
    are not penalized. With ``reduction: mean``, the means of all layers are summed. Grid steps get no gradient from the
    penalty.

    Args:
        model: The quantized and calibrated model.
        settings: Strength and schedule of the penalty.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: Dampening, steps: int) -> None:
        super().__init__(model, settings, steps)
        self._summed = settings.reduction == "sum"

    def of(self, site: WeightSite, latent: Tensor) -> Tensor:
        """Mean or sum of the squared distances of one weight tensor."""
        squared = to_centres(site, latent)[0].square()
        return squared.sum() if self._summed else squared.mean()


def to_centres(site: WeightSite, latent: Tensor) -> tuple[Tensor, Encoded]:
    """How far it is from the latent weights, clipped to the grid, to their quantized values.

    Args:
        site: The module that holds the weight.
        latent: The result of its ``latent()``.

    Returns:
        Differences in the shape of ``latent``, differentiable with respect to it alone; and its codes.
    """
    with torch.no_grad():
        encoded = encode(site, latent)
        value = encoded.decode()
        ends = encoded.grid.range.low, encoded.grid.range.high
        lowest, highest = (encoded.grid.points(torch.full_like(encoded.step, end)) * encoded.step for end in ends)
    return value - torch.clamp(latent, lowest, highest), encoded
