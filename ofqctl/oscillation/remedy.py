"""What a training phase may do beside optimizing, such as holding oscillating weights still."""

from collections.abc import Callable, Mapping
from typing import Self

from torch import Tensor, nn

from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.registry import Frozen


class RemedySettings(Frozen):
    """What a recipe says about a remedy."""

    def at_end(self) -> Self:
        """The same as it stands at the last step of its phase; those with a schedule override it."""
        return self


class Remedy:
    """Acts around every optimizer step of the phases that ask for it; each method does nothing unless overridden.

    It is made at the start of a phase as ``Remedy(model, settings, steps)``: the quantized model on its device, the
    settings it was registered with, and the number of optimizer steps of the phase.

    The order of a step is: ``gradients`` (forward and backward of every accumulated batch, then of ``penalty``),
    ``before_step``, clipping of gradients, ``optimizer.step()``, ``after_step``, the tracker's ``update``.
    """

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:  # noqa: ARG003
        """Find out ahead of all training whether ``model`` has what the remedy is for; by default quantized weights.

        Raises:
            RecipeError: It has not.
        """
        if next(weight_sites(model), None) is None:
            raise RecipeError(f"{cls.__name__} acts on quantized weights, and this model has none")

    def gradients(self, compute: Callable[[], Tensor]) -> Tensor:
        """Call ``compute``, which puts the gradients of the step in place, and return what it returned.

        A remedy that wants them at other weights (SAM), or more than once, overrides this.
        """
        return compute()

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss, differentiable, or None."""
        return None

    def before_step(self) -> None:
        """Look at the weights, change their gradients."""

    def after_step(self) -> None:
        """Change the weights that the optimizer has just moved."""

    def close(self) -> None:
        """Remove hooks from the model: the phase is over."""

    def state_dict(self) -> dict[str, Tensor]:
        """What has to be known between two steps and is not in the model."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""
