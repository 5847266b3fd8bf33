"""Gradient l1: small gradients, so that rounding moves the loss little (Alizadeh et al., ICLR 2020, arXiv 2002.07520).

Rounding moves a value by at most half a grid step, and so the loss, to first order, by at most half a step times the
sum of the magnitudes of its gradients. This sum is added to the loss, for weights and activations, and differentiated
a second time. What comes out is one set of weights that is rounded to many widths afterwards: use it in the last
epochs of a float training, ``quantized: none``. An optimizer step takes several times as long (the paper says 5.6 to
8.7 times an epoch), and much more memory.

The loss of a batch becomes ``L + weights * |dL/dw|_1 + activations * |dL/da|_1``, summed over all weights and all
activations that the recipe quantizes. The published strength on ImageNet is 0.05, in the last 15 epochs.

Our decisions: gradients are with respect to the inputs of the quantizers, for a merged query and key the product;
where these are on, gradients pass through rounding as always, in both derivatives. Only attention and quantizers that
can be differentiated twice are used meanwhile, which are not the fused ones. The images themselves are not counted.
Each forward pass adds the norm of its own gradient, so that micro-batches of few images have larger norms of the
weights' gradients than the whole batch; those of activations do not depend on how a batch is cut.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ofqctl.layers import weight_sites
from ofqctl.quantizers import Quantizer, fused
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.remedy import RemedySettings
from ofqctl.remedies.schedule import Schedule, Scheduled


class GradientL1(RemedySettings):
    """The l1 norm of gradients as part of the loss (Alizadeh et al. 2020).

    Attributes:
        weights: Weight of the norm of the gradients of weights.
        activations: Weight of the norm of the gradients of activations.
        delay: Share of the phase's optimizer steps that pass before the norms are added.
    """

    weights: float = Field(default=0.05, ge=0.0)
    activations: float = Field(default=0.05, ge=0.0)
    delay: float = Field(default=0.0, ge=0.0, lt=1.0)

    def at_end(self) -> Self:
        """Settings that add the norms from the first optimizer step on."""
        return self.model_copy(update={"delay": 0.0})


@REMEDIES.register("gradient_l1", GradientL1)
class GradientNorms(Scheduled):
    """Adds the norms of the gradients of weights and activations to the loss of each forward pass.

    Args:
        model: The quantized and calibrated model.
        settings: Weights of the norms.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: GradientL1, steps: int) -> None:
        super().__init__(Schedule(1.0, 1.0, settings.delay, steps))
        of_weights = {site.weight_quantizer for _, site in weight_sites(model)}
        self._strengths = {
            module: settings.weights if module in of_weights else settings.activations
            for module in model.modules()
            if isinstance(module, Quantizer)
        }
        self._seen: list[tuple[Tensor, float]] = []

    def gradients(self, compute: Callable[[], Tensor]) -> Tensor:
        """Call ``compute`` while what quantizers take in is kept and everything can be differentiated twice."""
        if self.strength is None:
            return compute()
        with ExitStack() as stack:
            stack.enter_context(fused(False))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            for quantizer, strength in self._strengths.items():
                if strength:
                    stack.enter_context(quantizer.register_forward_pre_hook(self._keep))
            return compute()

    def objective(self, loss: Tensor) -> Tensor:
        """The loss with the norms of the gradients of what was kept in its forward pass."""
        seen, self._seen = self._seen, []
        if not seen:
            return loss
        gradients = torch.autograd.grad(loss, [values for values, _ in seen], create_graph=True)
        norms = (
            strength * gradient.float().abs().sum() for gradient, (_, strength) in zip(gradients, seen, strict=True)
        )
        return loss + torch.stack(list(norms)).sum()

    def _keep(self, quantizer: Any, inputs: tuple[Tensor]) -> None:
        (values,) = inputs
        if values.requires_grad:
            self._seen.append((values, self._strengths[quantizer]))
