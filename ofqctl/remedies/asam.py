"""ASAM and SAM: minima that are flat (Kwon et al., ICML 2021, arXiv 2102.11600).

Every optimizer step takes its gradients where the loss is largest nearby: once for the way there, once for the step.
Weights come to rest where small changes matter little, and rounding is one. Use it in a training whose weights are to
be rounded later, or at few bits against overfitting; an optimizer step takes twice as long.

With ``g`` the gradient of all parameters, the way is ``rho * T^2 g / |T g|_2``. ASAM has ``T = |w| + eta`` for weights
and 1 for biases, so that weights move relative to their size and scaling a layer changes nothing; ``adaptive: false``
has ``T = 1`` everywhere and is SAM (Foret et al., ICLR 2021, arXiv 2010.01412), for which ``rho: 0.05`` is usual.

Our decisions: parameters of quantizers other than latents stay where they are, as what is wanted is flat in the
weights; their gradients are those of the second pass, like all others. Both passes draw the same augmentation, dropout
and stochastic depth, and the running statistics of batch norms are those of the first. The loss that is shown is that
of the first pass. For a merged query and key, the two projections are moved.
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.quantizers import Quantizer
from ofqctl.randomness import random_state, restore_random
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.moving import moved
from ofqctl.remedies.remedy import Remedy, RemedySettings

_SMALLEST_NORM = 1e-16


class ASAM(RemedySettings):
    """Adaptive sharpness-aware minimization (Kwon et al. 2021).

    Attributes:
        rho: Length of the way to where gradients are taken, relative to the weights if ``adaptive``.
        eta: What is added to the magnitudes of weights, so that small ones move too.
        adaptive: Whether weights move relative to their size (ASAM) or not (SAM).
    """

    rho: float = Field(default=0.5, gt=0.0)
    eta: float = Field(default=0.01, ge=0.0)
    adaptive: bool = True


@REMEDIES.register("asam", ASAM)
class SharpnessAware(Remedy):
    """Computes gradients at weights that are moved uphill.

    Args:
        model: The model, on its device.
        settings: How far weights are moved.
        steps: Number of optimizer steps in the phase; not used.
    """

    def __init__(self, model: nn.Module, settings: ASAM, steps: int) -> None:  # noqa: ARG002
        quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
        staying = {p for q in quantizers for name, p in q.named_parameters() if name not in q.own_latents}
        self._parameters = {name: p for name, p in model.named_parameters() if p not in staying}
        norms = (m for m in model.modules() if getattr(m, "running_mean", None) is not None)
        self._statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        self._settings = settings

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Any model will do."""

    def gradients(self, compute: Callable[[], Tensor]) -> Tensor:
        """Call ``compute`` twice, the second time at moved weights."""
        drawn = random_state()
        seen = compute()
        restore_random(drawn)
        with moved(self._uphill() | dict.fromkeys(self._statistics, 0)):
            compute()
        return seen

    @torch.no_grad()
    def _uphill(self) -> dict[Tensor, Tensor | float]:
        """The way of each parameter that has a gradient."""
        rho, eta, adaptive = self._settings.rho, self._settings.eta, self._settings.adaptive
        sizes: dict[Tensor, Tensor] = {}
        scaled: dict[Tensor, Tensor] = {}
        for name, parameter in self._parameters.items():
            if parameter.grad is not None:
                relative = adaptive and not name.endswith("bias")
                sizes[parameter] = parameter.abs() + eta if relative else torch.ones_like(parameter)
                scaled[parameter] = sizes[parameter] * parameter.grad
        norm = torch.stack([each.float().norm() for each in scaled.values()]).norm() + _SMALLEST_NORM
        return {parameter: rho / norm * size * scaled[parameter] for parameter, size in sizes.items()}
