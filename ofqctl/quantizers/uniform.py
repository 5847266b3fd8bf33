"""Static uniform quantization: steps fixed once from the range of weights or calibration activations."""

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

_CLIP_NOTHING = 8  # bits from which `auto` clips nothing


class UniformSettings(Frozen):
    """What a recipe may say about static uniform quantization.

    Attributes:
        symmetric: A grid around 0; otherwise each step has a zero point.
        range: How the range is chosen; ``auto`` is ``minmax`` at 8 bits, where clipping gains too little resolution to
            be worth what it loses, and ``mse`` below.
        percentile: With ``range: percentile``: the share of the values that the range covers, in percent.
    """

    symmetric: bool = True
    range: Annotated[Literal["minmax", "percentile", "mse", "auto"], AT_START] = "mse"
    percentile: Annotated[float, AT_START] = Field(default=99.99, gt=50.0, le=100.0)


class ActivationSettings(UniformSettings):
    """The same for activations, which lie around 0 less often."""

    symmetric: bool = False


@QUANTIZERS.register("uniform", UniformSettings, activations=ActivationSettings)
class Uniform(Quantizer):
    """Steps and, for an asymmetric grid, zero points from an estimated range; nothing is learned.

    The range is the minimum and maximum, percentiles, or the one with the least squared error.
    A symmetric grid is signed unless the plan or the data says that there are no negatives.
    """

    settings: UniformSettings
    offset: Tensor  # minus the zero points, of the shape of the steps; of asymmetric grids alone

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.register_buffer("step", torch.ones(plan.step_shape))
        if not self.settings.symmetric:
            self.range = CodeRange.of_bits(plan.bits, signed=False)
            self.register_buffer("offset", torch.zeros(plan.step_shape))
        self._estimator = self._new_estimator()

    @property
    def grid(self) -> Grid:
        """Evenly around 0, or off it by the zero points."""
        return super().grid if self.settings.symmetric else AffineGrid(self.range, self.offset.float(), self.plan.whole)

    def _take_in(self, x: Tensor) -> None:
        """Add the elements of ``x`` to what is known of each group's range."""
        self._estimator.observe(by_group(x.float(), self.plan.step_shape))

    def finish(self) -> None:
        """Fix steps and zero points."""
        if self.settings.symmetric:
            signed = self._estimator.negative if self.plan.signed is None else self.plan.signed
            self.range = CodeRange.of_bits(self.plan.bits, signed=signed)
        step, grid = self._estimator.fit(self.range, symmetric=self.settings.symmetric, whole=self.plan.whole)
        self.step.copy_(step.reshape(self.step.shape))
        if not self.settings.symmetric:
            self.offset.copy_(grid.tensors()["offset"].reshape(self.offset.shape))
        self._estimator = self._new_estimator()

    def describe(self) -> QuantizerPlan:
        """As the base class, but that zero points leave the sign as it was planned."""
        return super().describe() if self.settings.symmetric else self.plan

    def _new_estimator(self) -> RangeEstimator:
        choice = self.settings.range
        method = ("minmax" if self.plan.bits >= _CLIP_NOTHING else "mse") if choice == "auto" else choice
        return RangeEstimator(method, self.settings.percentile)
