"""Quantizers whose grid step is a parameter that starts where the squared error is least."""

import torch
from torch import Tensor, nn

from ofqctl.grids import AffineGrid, CodeRange, Grid, IntegerGrid
from ofqctl.quantizers.base import Quantizer, by_group
from ofqctl.quantizers.ranges import step_of_least_error
from ofqctl.recipe.plan import QuantizerPlan

_BUDGET = 1 << 20  # elements kept for each quantizer, 4 MiB


class LearnedStep(Quantizer):
    """The grid step is a parameter, one for each group of elements.

    Grid steps start at the least squared error, and a signed grid with shifts is centred on the mean of the elements
    that share a shift. If the plan leaves ``signed`` open, the grid is signed if the data has negative values.
    """

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.step = nn.Parameter(torch.ones(plan.step_shape))
        self._kept: list[Tensor] = []
        self._finite: bool | None = None  # until a tensor was seen
        self._negative = False

    def codes_of(self, *, signed: bool) -> CodeRange:
        """The range of the codes."""
        return CodeRange.of_bits(self.plan.bits, signed=signed)

    def _take_in(self, x: Tensor) -> None:
        """Keep what the search for the least error needs; of activations only the first images, up to a limit."""
        self._look(x)
        images = x.dim() > len(self.plan.step_shape)  # the grid step of a weight has as many dimensions as the weight
        room = (_BUDGET - sum(part.numel() for part in self._kept)) // x[0].numel()
        taken = x[: max(room, not self._kept)] if images else x
        if len(taken):
            self._kept.append(taken.float().clone())

    def _look(self, x: Tensor) -> None:
        """Note whether values are finite and whether some are negative."""
        self._finite = self._finite is not False and bool(torch.isfinite(x).all())
        self._negative = self._negative or bool((x < 0).any())

    def finish(self) -> None:
        """Set the grid steps, and whether the grid is signed if the plan leaves it open."""
        if not self._finite:
            raise ValueError("no finite values to compute a grid step from")
        self.range = self.codes_of(signed=self._negative if self.plan.signed is None else self.plan.signed)
        with torch.no_grad():
            self._start()
        self._kept, self._finite, self._negative = [], None, False

    def _start(self) -> None:
        """Set the grid steps and shifts from what was kept, where the squared error is least."""
        x = torch.cat(self._kept)
        if self.before is None or self.after is None or not self.range.signed:
            self.step.copy_(step_of_least_error(by_group(x, self.plan.step_shape), self.grid).view_as(self.step))
            return
        mean = by_group(x, self.before.shape).mean(dim=1).view_as(self.before)
        centred, offset = _centred(self.grid)
        step = step_of_least_error(by_group(x - mean, self.plan.step_shape), centred)
        self.step.copy_(step.view_as(self.step))
        moved = offset * self.step.mean()
        self.before.copy_(-mean - moved)
        self.after.copy_(mean + moved)


def _centred(grid: Grid) -> tuple[Grid, float]:
    """The grid with 0 in its middle, and what its points were moved by; signed codes have one more below 0."""
    if isinstance(grid, IntegerGrid):
        return AffineGrid(grid.range, torch.tensor(0.5)), 0.5
    return grid, 0.0
