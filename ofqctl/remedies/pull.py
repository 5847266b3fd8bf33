"""A pull towards the quantized weights: CAGE and WinQ (Tabesh et al., MLSys 2026, arXiv 2510.18784).

After an optimizer step every latent weight moves a share of the way to its quantized value, so that the two agree at
the end of training. Unlike a penalty it does not pass through the optimizer: Adam cannot blow up its small gradients,
and the share is what the recipe says. Two published methods are two settings of it, shipped as recipes
``cage/vit_w3a3`` and ``winq/vit_w2a2``; it costs as much as quantizing the weights once more.

*CAGE* pulls after every optimizer step: ``w <- w - lr * lambda * (w - Q(w))``, with ``lambda`` 0 for 80 % of the steps
and then rising linearly to 10. *WinQ* (Li et al., ICML 2026, arXiv 2605.17471) pulls rarely and far, ``w <- (1 - a) * w
+ a * Q(w)`` with ``a`` of 0.2 to 0.4 after each sixth to third of the phase, and computes gradients at ``Q(w +
noise)``, with normal noise of a standard deviation of 0.001 on language models. ``Q(w)`` includes clipping.

Our decisions: the learning rate is that of the schedule, a share is at most 1, and weights that the phase does not
train stay. The noise is drawn anew in every optimizer step, from the number of the step alone: all micro-batches,
processes and a training that goes on have the same. For a merged query and key, the product moves by the share, which
its correction holds; noise is added to the two projections.
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from ofqctl.layers import WeightSite, weight_sites
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.holding import allow_holding, encode
from ofqctl.remedies.moving import moved
from ofqctl.remedies.remedy import RemedySettings
from ofqctl.remedies.schedule import Schedule, Scheduled, ScheduledSettings, Shape


class Pull(ScheduledSettings):
    """A pull of latent weights towards their quantized values; the defaults are those of CAGE.

    Attributes:
        start: Strength of the pull when it starts.
        end: Strength at the last optimizer step of the phase.
        delay: Share of the phase's optimizer steps that pass before the pull starts.
        shape: How the strength changes, ``linear`` or ``cosine``.
        times_lr: Whether weights move by the strength times the learning rate; otherwise the strength is itself the
            share of the way.
        every: Share of the phase's optimizer steps between two pulls; 0 pulls after every optimizer step.
        noise: Standard deviation of the noise at which gradients are computed, in units of the weights; 0 for none.
    """

    start: float = Field(default=0.0, ge=0.0)
    end: float = Field(default=10.0, gt=0.0)
    delay: float = Field(default=0.8, ge=0.0, lt=1.0)
    shape: Shape = "linear"
    times_lr: bool = True
    every: float = Field(default=0.0, ge=0.0, le=1.0)
    noise: float = Field(default=0.0, ge=0.0)

    def over(self, steps: int) -> Schedule:
        """The schedule of a phase with so many optimizer steps."""
        return Schedule(self.start, self.end, self.delay, steps, self.shape)


@REMEDIES.register("pull", Pull)
class PullToCodes(Scheduled):
    """Moves trained latent weights towards their quantized values.

    Args:
        model: The quantized and calibrated model.
        settings: Strength, schedule and noise.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: Pull, steps: int) -> None:
        super().__init__(settings.over(steps))
        self._sites = [site for _, site in weight_sites(model) if _trained(site)]
        self._settings = settings
        self._every = max(1, round(settings.every * steps))
        self._optimizer: Optimizer | None = None

    @classmethod
    def prepare(cls, model: nn.Module, settings: RemedySettings) -> None:  # noqa: ARG003
        """Give merged products their correction."""
        allow_holding(site for _, site in weight_sites(model))

    def begin(self, optimizer: Optimizer) -> None:
        """Keep the optimizer, which knows the learning rate."""
        self._optimizer = optimizer

    def gradients(self, compute: Callable[[], Tensor]) -> Tensor:
        """Call ``compute`` at weights with noise, if any is wanted."""
        if not self._settings.noise:
            return compute()
        with moved(self._noise()):
            return compute()

    def after_step(self) -> None:
        """Move the weights, if it is time for it."""
        strength = self.strength
        super().after_step()
        if not strength or self.done % self._every:
            return
        if self._settings.times_lr:
            assert self._optimizer is not None
            strength *= self._optimizer.param_groups[0]["lr"]
        share = min(1.0, strength)
        with torch.no_grad():
            for site in self._sites:
                latent = site.latent()
                value = encode(site, latent).decode().to(latent)
                site.hold(torch.ones_like(latent, dtype=torch.bool), latent.lerp(value, share))

    def _noise(self) -> dict[Tensor, Tensor | float]:
        parameters = [parameter for site in self._sites for parameter in site.latent_parameters()]
        generator = torch.Generator(parameters[0].device if parameters else "cpu").manual_seed(self.done)
        return {
            parameter: self._settings.noise
            * torch.randn(parameter.shape, generator=generator, device=parameter.device, dtype=parameter.dtype)
            for parameter in parameters
        }


def _trained(site: WeightSite) -> bool:
    return any(parameter.requires_grad for parameter in site.latent_parameters())
