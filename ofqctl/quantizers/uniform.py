"""Static uniform quantization: grid steps from the range of what is quantized.

Nothing is learned: the range of weights is that of the weights, the range of activations that of calibration images,
clipped where that lowers the error. It is what post-training quantization starts from, at every width, and what
runtimes multiply fastest.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ofqctl.grids import AffineGrid, CodeRange, Grid
from ofqctl.quantizers.base import Quantizer, by_group
from ofqctl.quantizers.ranges import RangeEstimator
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import AT_START, QuantizerPlan
from ofqctl.registry import Frozen

_CLIP_NOTHING = 8  # smallest number of bits at which `auto` clips nothing


class UniformSettings(Frozen):
    """Settings of static uniform quantization in a recipe.

    Attributes:
        symmetric: Whether the grid is centred on 0; otherwise each grid step has a zero point.
        range: Method of choosing the range. ``auto`` is ``minmax`` at 8 bits, where clipping loses more than the finer
            resolution gains, and ``mse`` below.
        percentile: Share of the values that the range covers, in percent; for ``range: percentile``.
    """

    symmetric: bool = True
    range: Annotated[Literal["minmax", "percentile", "mse", "auto"], AT_START] = "mse"
    percentile: Annotated[float, AT_START] = Field(default=99.99, gt=50.0, le=100.0)


class ActivationSettings(UniformSettings):
    """The same settings for activations, which are asymmetric by default."""

    symmetric: bool = False


@QUANTIZERS.register("uniform", UniformSettings, activations=ActivationSettings)
class Uniform(Quantizer):
    """Grid steps and, for an asymmetric grid, zero points from an estimated range; nothing is learned.

    The range is given by minimum and maximum, by percentiles, or by the least squared error. A symmetric grid is signed
    unless the plan or the data rules out negative values.
    """

    settings: UniformSettings
    offset: Tensor  # minus the zero points, in the shape of the grid steps; asymmetric grids only

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.register_buffer("step", torch.ones(plan.step_shape))
        if not self.settings.symmetric:
            self.range = CodeRange.of_bits(plan.bits, signed=False)
            self.register_buffer("offset", torch.zeros(plan.step_shape))
        self._estimator = self._new_estimator()

    @property
    def grid(self) -> Grid:
        """Evenly spaced points, centred on 0 or moved by the zero points."""
        return super().grid if self.settings.symmetric else AffineGrid(self.range, self.offset.float(), self.plan.whole)

    def _take_in(self, x: Tensor) -> None:
        """Update the range of each group with the elements of ``x``."""
        self._estimator.observe(by_group(x.float(), self.plan.step_shape))

    def finish(self) -> None:
        """Set grid steps and zero points."""
        if self.settings.symmetric:
            signed = self._estimator.negative if self.plan.signed is None else self.plan.signed
            self.range = CodeRange.of_bits(self.plan.bits, signed=signed)
        step, grid = self._estimator.fit(self.range, symmetric=self.settings.symmetric, whole=self.plan.whole)
        self.step.copy_(step.reshape(self.step.shape))
        if not self.settings.symmetric:
            self.offset.copy_(grid.tensors()["offset"].reshape(self.offset.shape))
        self._estimator = self._new_estimator()

    def describe(self) -> QuantizerPlan:
        """As in the base class, except that with zero points ``signed`` stays as planned."""
        return super().describe() if self.settings.symmetric else self.plan

    def _new_estimator(self) -> RangeEstimator:
        choice = self.settings.range
        method = ("minmax" if self.plan.bits >= _CLIP_NOTHING else "mse") if choice == "auto" else choice
        return RangeEstimator(method, self.settings.percentile)
