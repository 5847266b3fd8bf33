"""LSQ: learned step size quantization (Esser et al., ICLR 2020, arXiv 1902.08153).

The grid step is a parameter and is trained like a weight, for weights as well as for activations, as OFQ uses it. It is
the plain way of training at 2 to 4 bits that others are compared with. A step costs about 1.8 times a step of the float
model, and nothing when the model runs.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP
from ofqctl.quantizers.base import by_group
from ofqctl.quantizers.learned_step import LearnedStep
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import AT_START, QuantizerPlan
from ofqctl.registry import Frozen


class LSQSettings(Frozen):
    """Settings of LSQ in a recipe.

    Attributes:
        start: How learned grid steps start. ``mean``: from the mean magnitude, each on inputs from already quantized
            layers, as published. ``mse``: where the squared error is least, on float activations; shifts then start
            with the grid centred on each mean.
    """

    start: Annotated[Literal["mean", "mse"], AT_START] = "mean"


@QUANTIZERS.register("lsq", LSQSettings)
class LSQ(LearnedStep):
    """Learned step size quantization: the grid step is a parameter, one for each group of elements.

    With ``start: mean`` (as published), grid steps start at ``2 * mean|x| / sqrt(high)`` on a signed grid and at ``4 *
    mean|x| / sqrt(high)`` on an unsigned one, and shifts at 0; activation quantizers start one after the other, layer
    by layer. With ``start: mse``, they start as those of any :class:`LearnedStep`.
    """

    settings: LSQSettings

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self._sum: Tensor | None = None
        self._count = 0

    @property
    def starts_in_turn(self) -> bool:
        """Whether it starts with ``mean``: quantized layers change how large the inputs of the next layers are."""
        return self.settings.start == "mean"

    def _take_in(self, x: Tensor) -> None:
        """Add the magnitudes of ``x`` to the running mean of each group, or keep it."""
        if self.settings.start == "mse":
            super()._take_in(x)
            return
        rows = by_group(x.float(), self.plan.step_shape)
        total = rows.abs().sum(dim=1).cpu().double()
        self._sum = total if self._sum is None else self._sum + total
        self._count += rows.shape[1]
        self._look(rows)

    def _start(self) -> None:
        if self._sum is None:
            super()._start()
            return
        start = (2.0 if self.range.signed else 4.0) * self._sum / self._count / max(1, self.range.high) ** 0.5
        self.step.copy_(_like_the_others(start).clamp(min=SMALLEST_STEP).reshape(self.step.shape))
        self._sum, self._count = None, 0


def _like_the_others(steps: Tensor) -> Tensor:
    """Set the grid steps of groups that contain only zeros to the mean of the other groups' steps, or to 1."""
    found = steps[steps > 0]
    return torch.where(steps > 0, steps, found.mean() if len(found) else 1.0)
