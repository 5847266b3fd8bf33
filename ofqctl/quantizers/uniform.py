"""Static uniform quantization: steps fixed once from the range of weights or calibration activations."""

import torch
from torch import Tensor

from ofqctl.grids import AffineGrid, CodeRange, Grid
from ofqctl.quantizers.base import Quantizer, by_group
from ofqctl.quantizers.ranges import RangeEstimator
from ofqctl.recipe.plan import QuantizerPlan


class Uniform(Quantizer):
    """Steps and, for an asymmetric grid, zero points from an estimated range; nothing is learned.

    The range is the minimum and maximum, percentiles, or the one with the least squared error.
    A symmetric grid is signed unless the plan or the data says that there are no negatives.
    """

    method = "uniform"
    offset: Tensor  # minus the zero points, of the shape of the steps; of asymmetric grids alone

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.register_buffer("step", torch.ones(plan.step_shape))
        if not plan.symmetric:
            self.range = CodeRange.of_bits(plan.bits, signed=False)
            self.register_buffer("offset", torch.zeros(plan.step_shape))
        self._estimator = RangeEstimator(plan.range, plan.percentile)

    @property
    def grid(self) -> Grid:
        """Evenly around 0, or off it by the zero points."""
        return super().grid if self.plan.symmetric else AffineGrid(self.range, self.offset)

    def _take_in(self, x: Tensor) -> None:
        """Add the elements of ``x`` to what is known of each group's range."""
        self._estimator.observe(by_group(x.float(), self.plan.step_shape))

    def finish(self) -> None:
        """Fix steps and zero points."""
        if self.plan.symmetric:
            signed = self._estimator.negative if self.plan.signed is None else self.plan.signed
            self.range = CodeRange.of_bits(self.plan.bits, signed=signed)
        step, grid = self._estimator.fit(self.range, symmetric=self.plan.symmetric, whole=self.plan.whole)
        self.step.copy_(step.reshape(self.step.shape))
        if not self.plan.symmetric:
            self.offset.copy_(grid.tensors()["offset"].reshape(self.offset.shape))
        self._estimator = RangeEstimator(self.plan.range, self.plan.percentile)
