"""Oscillation dampening (Nagel et al., ICML 2022, arXiv 2203.11086, Eq. 5)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.holding import encode
from ofqctl.oscillation.remedy import Remedy
from ofqctl.oscillation.schedule import Schedule
from ofqctl.recipe.training import Dampening as Settings


class Dampening(Remedy):
    """Draws latent weights to the middle of their bins, away from the thresholds at which their codes change.

    The penalty is ``lambda * sum over weights of mean((sg(w_q) - clip(w, grid))^2)``, with ``w`` the latent weight,
    ``w_q`` its value and the grid's outermost values as bounds: a weight beyond them is left alone. Steps get no
    gradient from it. Of a merged query-key product ``w`` is the product, and the penalty reaches both projections.

    Args:
        model: Quantized and calibrated.
        settings: Strength and schedule.
        steps: Optimizer steps of the phase.
    """

    def __init__(self, model: nn.Module, settings: Settings, steps: int) -> None:
        self._sites = [site for _, site in weight_sites(model)]
        self._strength = Schedule(settings.start, settings.end, settings.delay, steps)
        self._summed = settings.reduction == "sum"
        self._step = 0

    def penalty(self) -> Tensor | None:
        """The sum over all weights that are trained, times the strength of the step under way."""
        strength = self._strength.at(self._step)
        if not strength:
            return None
        distances = [self._distance(site, latent) for site in self._sites if (latent := site.latent()).requires_grad]
        return strength * torch.stack(distances).sum() if distances else None

    def before_step(self) -> None:
        """Gradients are left alone."""

    def after_step(self) -> None:
        """Count the step."""
        self._step += 1

    def close(self) -> None:
        """Nothing to let go of."""

    def state_dict(self) -> dict[str, Tensor]:
        """``step``: how many are done."""
        return {"step": torch.tensor(self._step)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self._step = int(state["step"])

    def _distance(self, site: WeightSite, latent: Tensor) -> Tensor:
        """Mean or sum of the squared distances of one weight."""
        with torch.no_grad():
            encoded = encode(site, latent)
            value = encoded.decode()
            ends = encoded.grid.range.low, encoded.grid.range.high
            lowest, highest = (encoded.grid.points(torch.full_like(encoded.step, end)) * encoded.step for end in ends)
        squared = (value - torch.clamp(latent, lowest, highest)).square()
        return squared.sum() if self._summed else squared.mean()
