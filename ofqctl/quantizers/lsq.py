"""LSQ: learned step size quantization (Esser et al., ICLR 2020, arXiv 1902.08153).

The grid step is a parameter and is trained like a weight, for weights as well as for activations, as OFQ uses it. It is
the plain way of training at 2 to 4 bits that others are compared with. A step costs about 1.8 times a step of the float
model, and nothing when the model runs.
"""

from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from ofqctl.grids import SMALLEST_STEP, AffineGrid, CodeRange
from ofqctl.quantizers.base import Quantizer, by_group
from ofqctl.quantizers.ranges import step_of_least_error
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import AT_START, QuantizerPlan
from ofqctl.registry import Frozen

_BUDGET = 1 << 20  # elements kept for each quantizer with `start: mse`, 4 MiB


class LSQSettings(Frozen):
    """Settings of LSQ in a recipe.

    Attributes:
        start: How learned grid steps start. ``mean``: from the mean magnitude, each on inputs from already quantized
            layers, as published. ``mse``: where the squared error is least, on float activations; shifts then start
            with the grid centred on each mean.
    """

    start: Annotated[Literal["mean", "mse"], AT_START] = "mean"


@QUANTIZERS.register("lsq", LSQSettings)
class LSQ(Quantizer):
    """Learned step size quantization: the grid step is a parameter, one for each group of elements.

    With ``start: mean`` (as published), grid steps start at ``2 * mean|x| / sqrt(high)`` on a signed grid and at ``4 *
    mean|x| / sqrt(high)`` on an unsigned one, and shifts at 0; activation quantizers start one after the other, layer
    by layer. With ``start: mse``, grid steps start at the least squared error, and a signed grid with shifts is centred
    on the mean of the elements that share a shift. If the plan leaves ``signed`` open, the grid is signed if the data
    has negative values.
    """

    settings: LSQSettings

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.step = nn.Parameter(torch.ones(plan.step_shape))
        self._kept: list[Tensor] = []
        self._sum: Tensor | None = None
        self._count = 0
        self._negative = False

    @property
    def starts_in_turn(self) -> bool:
        """Whether it starts with ``mean``: quantized layers change how large the inputs of the next layers are."""
        return self.settings.start == "mean"

    def _take_in(self, x: Tensor) -> None:
        """Add the magnitudes of ``x`` to the running mean of each group."""
        self._keep(x)
        rows = by_group(x.float(), self.plan.step_shape)
        total = rows.abs().sum(dim=1).cpu().double()
        self._sum = total if self._sum is None else self._sum + total
        self._count += rows.shape[1]
        self._negative = self._negative or bool((rows < 0).any())

    def finish(self) -> None:
        """Set the grid steps, and whether the grid is signed if the plan leaves it open."""
        if self._sum is None or not bool(torch.isfinite(self._sum).all()):
            raise ValueError("no finite values to compute a grid step from")
        signed = self._negative if self.plan.signed is None else self.plan.signed
        self.range = CodeRange.of_bits(self.plan.bits, signed=signed)
        start = (2.0 if signed else 4.0) * self._sum / self._count / max(1, self.range.high) ** 0.5
        start = _like_the_others(start)
        with torch.no_grad():
            self.step.copy_(start.clamp(min=SMALLEST_STEP).reshape(self.step.shape))
            if self._kept:
                self._start_at_least_error(torch.cat(self._kept))
        self._kept, self._sum, self._count, self._negative = [], None, 0, False

    def _keep(self, x: Tensor) -> None:
        """Keep what the search for the least error needs; of activations only the first images, up to a limit."""
        if self.settings.start == "mean":
            return
        images = x.dim() > len(self.plan.step_shape)  # the grid step of a weight has as many dimensions as the weight
        room = (_BUDGET - sum(part.numel() for part in self._kept)) // x[0].numel()
        taken = x[: max(room, not self._kept)] if images else x
        if len(taken):
            self._kept.append(taken.float().clone())

    def _start_at_least_error(self, x: Tensor) -> None:
        if self.before is None or self.after is None or not self.range.signed:
            self.step.copy_(step_of_least_error(by_group(x, self.plan.step_shape), self.grid).view_as(self.step))
            return
        mean = by_group(x, self.before.shape).mean(dim=1).view_as(self.before)
        centred = AffineGrid(self.range, torch.tensor(0.5))
        step = step_of_least_error(by_group(x - mean, self.plan.step_shape), centred)
        self.step.copy_(step.view_as(self.step))
        half = self.step.mean() / 2
        self.before.copy_(-mean - half)
        self.after.copy_(mean + half)


def _like_the_others(steps: Tensor) -> Tensor:
    """Set the grid steps of groups that contain only zeros to the mean of the other groups' steps, or to 1."""
    found = steps[steps > 0]
    return torch.where(steps > 0, steps, found.mean() if len(found) else 1.0)
