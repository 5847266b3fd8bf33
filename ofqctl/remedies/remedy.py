"""What a training phase can do beside optimizing, such as holding the codes of oscillating weights."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.registry import Frozen


class RemedySettings(Frozen):
    """Settings of a remedy in a recipe."""

    def at_end(self) -> Self:
        """The settings in effect at the last optimizer step of the phase; remedies with a schedule override this."""
        return self


class Remedy:
    """Acts around every optimizer step of the phases that name it; each method does nothing unless overridden.

    It is created at the start of a phase as ``Remedy(model, settings, steps)``, with the quantized model on its device,
    settings of the class it was registered with, and the number of optimizer steps in the phase.

    The order within an optimizer step is: ``gradients`` (forward, ``objective`` and backward of every accumulated
    batch, then backward of ``penalty``), ``before_step``, clipping of gradients, ``step``, ``after_step``, the
    tracker's ``update``. Of several remedies, the first in ``before_step`` is the last in ``after_step``; those that
    hold codes have the last word.

    Attributes:
        beside_own_latents: Whether it works where codes follow from latents of the quantizer, beside the latent weight.
    """

    beside_own_latents: ClassVar[bool] = False

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:  # noqa: ARG003
        """Check before training that the remedy can work on ``model``; by default, that it has quantized weights.

        Raises:
            RecipeError: The model has nothing for the remedy to work on, or latents that it does not know of.
        """
        quantizers = {name: site.weight_quantizer for name, site in weight_sites(model)}
        if not quantizers:
            raise RecipeError(f"{cls.__name__} acts on quantized weights, and this model has none")
        for name, quantizer in quantizers.items():
            if quantizer is not None and quantizer.own_latents and not cls.beside_own_latents:
                raise RecipeError(
                    f"{cls.__name__} acts on one latent weight for each code, and those of {name} follow from several",
                    hint=f"train `{quantizer.plan.method}` in a phase without it",
                )

    @classmethod
    def prepare(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Add tensors that the remedy needs to ``model``, before it is copied for averaging and trained."""

    def begin(self, optimizer: Optimizer) -> None:
        """Called once in a phase: when the optimizer is restored, before the remedy is and before the first step.

        The learning rates in the optimizer's groups are those of the next optimizer step from ``gradients`` on.
        """

    def gradients(self, compute: Callable[[], Tensor]) -> Tensor:
        """Call ``compute``, which computes the gradients of the optimizer step, and return its result.

        A remedy that needs gradients at other weights (such as SAM), or more than once, overrides this.
        """
        return compute()

    def objective(self, loss: Tensor) -> Tensor:
        """What to differentiate in place of the loss of one forward pass, whose graph is still there."""
        return loss

    def penalty(self) -> Tensor | None:
        """A differentiable scalar to add to the loss, or None."""
        return None

    def before_step(self) -> None:
        """Called when gradients are complete, before they are clipped: inspect weights, change gradients."""

    def step(self, take: Callable[[], None]) -> None:
        """Take the optimizer step by calling ``take``; a remedy that takes it in other parameters overrides this."""
        take()

    def after_step(self) -> None:
        """Called after the optimizer has moved the weights: change them."""

    def close(self) -> None:
        """Called at the end of the phase: remove hooks from the model."""

    def state_dict(self) -> dict[str, Tensor]:
        """State between optimizer steps that is not part of the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state that :meth:`state_dict` returned."""
