"""What the remedies that add a penalty on latent weights to the loss have in common."""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from ofqctl.layers import WeightSite, weight_sites
from ofqctl.remedies.schedule import Scheduled, ScheduledSettings


class LatentPenalty(Scheduled):
    """Adds the sum of a penalty over all trained weight tensors to the loss, times a strength that follows a schedule.

    For a merged query and key the latent weight is the product, and the gradient reaches both projections. The penalty
    is computed once in an optimizer step, however many micro-batches that has.

    Args:
        model: The quantized and calibrated model.
        settings: The schedule of the strength.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: ScheduledSettings, steps: int) -> None:
        super().__init__(settings.over(steps))
        self._sites = self.sites(model)

    @classmethod
    def sites(cls, model: nn.Module) -> list[WeightSite]:
        """The weights with a penalty; by default all that are quantized."""
        return [site for _, site in weight_sites(model)]

    @abstractmethod
    def of(self, site: WeightSite, latent: Tensor) -> Tensor:
        """The penalty of one weight tensor, a scalar that is differentiable with respect to ``latent``."""

    def penalty(self) -> Tensor | None:
        """The penalty of all trained weights, times its current strength."""
        strength = self.strength
        if not strength:
            return None
        found = [self.of(site, latent) for site in self._sites if (latent := site.latent()).requires_grad]
        return strength * torch.stack(found).sum() if found else None
