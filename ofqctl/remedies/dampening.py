"""Oscillation dampening (Nagel et al., ICML 2022, arXiv 2203.11086).

A penalty pulls each weight to the centre of its bin, away from the thresholds at which its code changes (Eq. 5 of the
paper). Gentler than freezing, as no code is ever fixed; it also keeps weights from moving on, so it starts late.
"""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.layers import WeightSite, weight_sites
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.holding import encode
from ofqctl.remedies.remedy import Remedy, RemedySettings
from ofqctl.remedies.schedule import Schedule


class Dampening(RemedySettings):
    """Oscillation dampening (Nagel et al. 2022): a penalty pulls latent weights to the centres of their bins.

    Attributes:
        start: Weight of the penalty in the loss when it starts.
        end: Weight of the penalty at the last optimizer step of the phase; it changes along a cosine.
        delay: Share of the phase's optimizer steps that pass before the penalty starts.
        reduction: How the squared distances of a layer's weights are combined: ``sum`` (as published) or ``mean``.
    """

    start: float = Field(default=0.0, ge=0.0)
    end: float = Field(default=0.1, gt=0.0)
    delay: float = Field(default=0.25, ge=0.0, lt=1.0)
    reduction: Literal["sum", "mean"] = "sum"

    def at_end(self) -> Self:
        """Settings that have their final value from the first optimizer step on."""
        return self.model_copy(update={"start": self.end, "delay": 0.0})


@REMEDIES.register("dampening", Dampening)
class DampeningPenalty(Remedy):
    """Pulls latent weights to the centres of their bins, away from the thresholds at which their codes change.

    The penalty is ``lambda * sum over all weights of (sg(w_q) - clip(w, grid))^2``, with ``w`` the latent weight,
    ``w_q`` its quantized value, and clipping to the outermost values of the grid, so that weights outside of the grid
    are not penalized. With ``reduction: mean``, the means of all layers are summed. Grid steps get no gradient from the
    penalty. For a merged query and key, ``w`` is the product, and the gradient reaches both projections.

    Args:
        model: The quantized and calibrated model.
        settings: Strength and schedule of the penalty.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: Dampening, steps: int) -> None:
        self._sites = [site for _, site in weight_sites(model)]
        self._strength = Schedule(settings.start, settings.end, settings.delay, steps)
        self._summed = settings.reduction == "sum"
        self._step = 0

    def penalty(self) -> Tensor | None:
        """The penalty of all trained weights, times its current weight."""
        strength = self._strength.at(self._step)
        if not strength:
            return None
        distances = [self._distance(site, latent) for site in self._sites if (latent := site.latent()).requires_grad]
        return strength * torch.stack(distances).sum() if distances else None

    def before_step(self) -> None:
        """Gradients are not changed."""

    def after_step(self) -> None:
        """Count the optimizer step."""
        self._step += 1

    def close(self) -> None:
        """There are no hooks to remove."""

    def state_dict(self) -> dict[str, Tensor]:
        """``step``: the number of optimizer steps done."""
        return {"step": torch.tensor(self._step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state."""
        self._step = int(state["step"])

    def _distance(self, site: WeightSite, latent: Tensor) -> Tensor:
        """Mean or sum of the squared distances of one weight tensor."""
        with torch.no_grad():
            encoded = encode(site, latent)
            value = encoded.decode()
            ends = encoded.grid.range.low, encoded.grid.range.high
            lowest, highest = (encoded.grid.points(torch.full_like(encoded.step, end)) * encoded.step for end in ends)
        squared = (value - torch.clamp(latent, lowest, highest)).square()
        return squared.sum() if self._summed else squared.mean()
