"""Gradients of latent weights, of merged products too, which no parameter keeps."""

from typing import Any

from torch import Tensor, nn

from ofqctl.layers import WeightSite


class GradientWatch:
    """Knows the gradient of one latent weight after the backward passes of a step.

    Args:
        site: The weight.
        latent: Its float values.
        index: Which entries are wanted; all by default.
    """

    def __init__(self, site: WeightSite, latent: Tensor, index: Any = ...) -> None:
        self.index = index
        self._kept: Tensor | None = None
        self._hook = None
        if not isinstance(latent, nn.Parameter):
            assert site.weight_quantizer is not None
            self._hook = site.weight_quantizer.register_forward_pre_hook(self._watch)

    def take(self, latent: Tensor) -> Tensor | None:
        """The gradient at the wanted entries, summed over the batches of the step, or None if there was none.

        Args:
            latent: The weight, its gradient still there if it is a parameter.
        """
        kept, self._kept = self._kept, None
        return kept if latent.grad is None else latent.grad[self.index]

    def close(self) -> None:
        """Let go of the weight."""
        if self._hook is not None:
            self._hook.remove()

    def _watch(self, _quantizer: Any, inputs: tuple[Tensor]) -> None:
        """A forward pre-hook of the weight quantizer: wait for the gradient of its input."""
        (latent,) = inputs
        if latent.requires_grad:
            latent.register_hook(self._keep)  # type: ignore[no-untyped-call]

    def _keep(self, gradient: Tensor) -> None:
        picked = gradient[self.index]
        self._kept = picked if self._kept is None else self._kept + picked
