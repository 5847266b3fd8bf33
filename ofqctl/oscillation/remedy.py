"""What a training phase may do against oscillation."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Remedy(Protocol):
    """Acts around every optimizer step of the phases that ask for it.

    The order of a step is: forward, ``penalty`` added to the loss, backward (of every accumulated batch),
    ``before_step``, clipping of gradients, ``optimizer.step()``, ``after_step``, the tracker's ``update``.
    """

    def penalty(self) -> Tensor | None:
        """A scalar to add to the loss, differentiable, or None."""

    def before_step(self) -> None:
        """Look at the weights, change their gradients."""

    def after_step(self) -> None:
        """Change the weights that the optimizer has just moved."""

    def close(self) -> None:
        """Let go of the model: the phase is over."""

    def state_dict(self) -> dict[str, Tensor]:
        """What has to be known between two steps and is not in the model."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state_dict` gave."""
