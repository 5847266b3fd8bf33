"""DAQ, distance-aware quantization (Kim et al., ICCV 2021, arXiv 2108.06983).

Rounding has no useful gradient, and passing it straight through pretends that all values move their codes alike. Here
the gradient is that of a soft rounding, whose value is exactly the rounded one: it is largest halfway between two
points, where a value is about to change its code, and smallest on them. For weights and activations from 1 bit on,
where most else fails; it needs training, and costs 8 bytes an activation kept for backward and nothing when the model
runs.

Between the neighbouring points 0 and 1, with ``q*`` the nearer one, each has a score ``s_q = exp(-|x - q|) * exp(-(q -
q*)**2 / sigma**2)``. The soft value is the mean of the points, moved outward by ``1 / (exp(gamma) - 1)``, weighted by
``softmax(T * s)`` with the temperature ``T = gamma / |s_0 - s_1|``, a constant to autograd. Then it is ``q*``, and,
with ``d`` the distance of ``x`` to it, its derivative is

    gamma / (2 * sinh(gamma)) * coth((1 - 2 * d + 1 / sigma**2) / 2).

The published constants are ``gamma`` 2, and ``sigma`` 1 for weights and 2 for activations.

Decisions. As published, a signed grid has no zero: its points lie half a step off the codes, evenly around 0. The
paper clips to learned bounds, gives out -1 to 1, and scales the output of each layer; here one learned step for each
row is both, so the bounds are the outermost points. The gradient of the step is that of ``step * soft(x / step)``,
scaled as in LSQ. Steps start at the least squared error in place of three standard deviations. That is not so for a
signed grid of 1 bit: its code is the sign whatever the bounds, but beyond them there is no gradient, and 42 % of
Gaussian weights would be stuck. Its interval is ``reach`` times as wide as its two points are apart, 3.75 by default,
which is three standard deviations of a Gaussian as published. Weights are not standardized, which a step for each row
replaces, and what autograd makes of the paper's formula on a point itself, where ``|x - q|`` has none, is the limit
from within.
"""

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd import Function

from ofqctl.grids import AffineGrid, Grid
from ofqctl.quantizers.learned_step import LearnedStep
from ofqctl.quantizers.reference import Rounding
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.registry import Frozen


class DAQSettings(Frozen):
    """Settings of DAQ in a recipe.

    Attributes:
        gamma: How hard the soft rounding is: the larger, the smaller are gradients everywhere.
        sigma: How much the nearer point is preferred: the larger, the more gradients grow between two points.
        reach: Of a signed grid of 1 bit: width of the interval in which values have a gradient, in grid steps.
    """

    gamma: float = Field(default=2.0, gt=0.0)
    sigma: float = Field(default=1.0, gt=0.0)
    reach: float = Field(default=3.75, ge=1.0)


class ActivationSettings(DAQSettings):
    """The same settings for activations."""

    sigma: float = Field(default=2.0, gt=0.0)


@QUANTIZERS.register("daq", DAQSettings, activations=ActivationSettings)
class DAQ(LearnedStep):
    """A learned step, and the gradient of a soft rounding that is exact."""

    settings: DAQSettings

    @property
    def grid(self) -> Grid:
        """Signed: points half a step off the codes; unsigned: the codes."""
        return AffineGrid(self.range, torch.tensor(0.5)) if self.range.signed else super().grid

    @property
    def rounding(self) -> Rounding:
        """Rounding with the gradient of the soft form."""
        return self._round

    def _round(self, x: Tensor, step: Tensor, grid: Grid) -> Tensor:
        wide = self.settings.reach if self.range.signed and self.range.bits == 1 else 1.0
        points: Tensor = _Soft.apply(x, step, grid, self.settings.gamma, self.settings.sigma, wide)
        return points


class _Soft(Function):
    """The points that ``x / step`` rounds to; keeps ``x / step`` alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, grid: Grid, gamma: float, sigma: float, wide: float) -> Tensor:
        in_steps = x / step
        ctx.save_for_backward(in_steps, step)
        ctx.grid, ctx.constants, ctx.wide = grid, (gamma, sigma), wide
        return grid.points(grid.nearest(in_steps))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (in_steps, step), grid = ctx.saved_tensors, ctx.grid
        position = in_steps / ctx.wide
        distance = (grid.points(grid.nearest(position)) - position).abs()
        grad = torch.where(grid.within(position), grads[0] * slope(distance, *ctx.constants) / ctx.wide, 0.0)
        of_step = torch.where(grad == 0.0, 0.0, grad * in_steps).sum_to_size(step.shape) / -step
        return grad / step, of_step, None, None, None, None


def slope(distance: Tensor, gamma: float, sigma: float) -> Tensor:
    """The derivative of the soft rounding.

    Args:
        distance: Distance to the nearest point, 0 to 1/2, in grid steps.
        gamma: Difference of the two scores times the temperature.
        sigma: Width of the preference for the nearer point.
    """
    return gamma / (2.0 * math.sinh(gamma)) / ((1.0 - 2.0 * distance + sigma**-2) / 2.0).tanh()
