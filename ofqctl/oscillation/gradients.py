"""Gradients of latent weights, including merged products, whose gradients no parameter stores."""

from typing import Any

from torch import Tensor, nn

from ofqctl.layers import WeightSite


class GradientWatch:
    """Collects the gradient of one latent weight over the backward passes of an optimizer step.

    Args:
        site: The module that holds the weight.
        latent: Its latent values.
        index: Entries to collect; all by default.
    """

    def __init__(self, site: WeightSite, latent: Tensor, index: Any = ...) -> None:
        self.index = index
        self._kept: Tensor | None = None
        self._hook = None
        if not isinstance(latent, nn.Parameter):
            assert site.weight_quantizer is not None
            self._hook = site.weight_quantizer.register_forward_pre_hook(self._watch)

    def take(self, latent: Tensor) -> Tensor | None:
        """The gradient of these entries, summed over the batches of the optimizer step, or None if there was none.

        Args:
            latent: The latent weight; if it is a parameter, with its gradient still in place.
        """
        kept, self._kept = self._kept, None
        return kept if latent.grad is None else latent.grad[self.index]

    def close(self) -> None:
        """Remove the hooks."""
        if self._hook is not None:
            self._hook.remove()

    def _watch(self, _quantizer: Any, inputs: tuple[Tensor]) -> None:
        """A forward pre-hook of the weight quantizer that collects the gradient of its input."""
        (latent,) = inputs
        if latent.requires_grad:
            latent.register_hook(self._keep)  # type: ignore[no-untyped-call]

    def _keep(self, gradient: Tensor) -> None:
        picked = gradient[self.index]
        self._kept = picked if self._kept is None else self._kept + picked
