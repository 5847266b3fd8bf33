"""LCQ, learnable companding quantization (Yamamoto, CVPR 2021, arXiv 2103.07156).

The points of the grid are learned, and lie close together where that lowers the loss: values are compressed by a
learned curve, rounded evenly, and expanded again. It is for weights and activations of 2-4 bits whose values are far
from evenly spread, and needs a long training: the curve starts as a straight line, and its numbers change by about the
learning rate in a step, so that a hundred steps at 1e-3 hardly bend it. It costs 16 numbers a tensor, 8 bytes an
activation kept for backward, and table lookups in exported files; with ``requantize`` the points are 8-bit integers
times a step, on which products are computed as on any other integers.

With ``v = |x| / alpha``, ``K = 16`` intervals, ``p = softmax(theta)`` and knots ``beta`` (0 and the cumulative sums of
``p``), the curve ``g`` is linear between ``(k / K, beta_k)``, with slopes ``gamma_k = K * p_k``. The value is

    sign(x) * alpha * G(round(s * g(v)) / s),    G the inverse of g,

and ``sign(x) * alpha`` beyond ``alpha``, with ``s = 2**(bits-1) - 1`` on a signed grid and ``2**bits - 1`` on an
unsigned one. In the terms of this program: codes are ``-s .. s`` or ``0 .. s``, the grid step is ``alpha / s``, points
are ``s * G(code / s)``, and thresholds ``s * G((code + 1/2) / s)`` are stored beside them, because the mean of two
points is not where their codes meet.

Gradients: of ``x`` the identity inside; of ``alpha`` ``value / alpha``, less ``x / alpha`` inside; of the curve,
inside, those of ``G(y)`` with ``y`` the rounded number, through its interval ``j``, and with the rounding passed
straight through those of ``g(v)`` divided by ``gamma_j``. Those of step and ``theta`` are scaled as in LSQ.

Decisions. The learned parameter is the step of each row, not ``alpha``, so remedies and the analysis see it as any
other step. It starts at the least squared error of the even grid; of the paper's start nothing is known, and three
standard deviations, as others start it, round 87 % of Gaussian weights of 2 bits to 0. The paper's "limited weight
normalization" (weights divided by their standard deviation within the quantizer) is left out: a step that both follows
the weights and learns could not be held by any remedy, and a step learned for each row adapts as well. The paper
rounds its points again to keep lookup tables small; ``requantize`` is that, to as many 8-bit integers as a power of
two allows. On a signed grid of 2 bits there are three points, -1, 0 and 1 steps whatever ``theta`` is, and the curve
moves the thresholds alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ofqctl.grids import CodeRange, Grid, TableGrid
from ofqctl.quantizers.learned_step import LearnedStep
from ofqctl.quantizers.reference import Rounding
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import QuantizerPlan
from ofqctl.registry import Frozen

INTERVALS = 16  # K
_MOST_BITS = 4  # with more, two points may round to one integer
_LARGEST = {True: 127, False: 255}  # 8-bit integer, by whether there are negative ones
_NARROWEST = 1e-12  # smallest width of an interval of compressed values, which is divided by


class LCQSettings(Frozen):
    """Settings of LCQ in a recipe.

    Attributes:
        requantize: Whether points are rounded to a power of two times integers of 8 bits, so that exported products run
            on integers; for up to 4 bits. Otherwise products with such weights or activations run in float.
    """

    requantize: bool = False

    def refused(self, bits: int) -> str | None:
        """1 bit has nothing to compand."""
        if bits == 1:
            return "lcq has 2-8 bits: at 1 bit there is no point between 0 and the largest to move"
        if self.requantize and bits > _MOST_BITS:
            return f"lcq with requantize has up to {_MOST_BITS} bits: of more, two points may be one 8-bit integer"
        return None


@dataclass(frozen=True, eq=False)
class CompandedGrid(TableGrid):
    """Points and thresholds of a learned curve, differentiable.

    Attributes:
        theta: What they follow from, (16,); stored beside them, to train on.
        knots: The curve: compressed values at even distances, (17,); None if read from a file.
        slopes: Change of the point of each code with the compressed value, (codes,); None if read from a file.
    """

    theta: Tensor | None = None
    knots: Tensor | None = None
    slopes: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """``points``, ``thresholds`` and ``theta``."""
        return super().tensors() | {"theta": cast(Tensor, self.theta)}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "CompandedGrid":
        """The grid with stored tensors."""
        points, thresholds, theta = (tensors[name] for name in ("points", "thresholds", "theta"))
        return replace(self, table=points, thresholds=thresholds, theta=theta, knots=None, slopes=None)


@QUANTIZERS.register("lcq", LCQSettings)
class LCQ(LearnedStep):
    """Learnable companding: points and thresholds follow a learned piecewise linear curve, the same for every step."""

    settings: LCQSettings

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.range = self.codes_of(signed=self.range.signed)
        self.theta = nn.Parameter(torch.zeros(INTERVALS))

    def codes_of(self, *, signed: bool) -> CodeRange:
        """The range without the lowest of signed codes, which has no positive counterpart."""
        high = CodeRange.of_bits(self.plan.bits, signed=signed).high
        return CodeRange(-high if signed else 0, high)

    @property
    def grid(self) -> CompandedGrid:
        """The points and thresholds that the curve gives."""
        high, knots = self.range.high, _knots(self.theta)
        levels = torch.arange(2 * high + 1, device=knots.device).to(knots) / (2 * high)  # whole and half codes in turn
        expanded, slopes = _expand(levels, knots)
        marks, slopes = (high * expanded).float(), (high * slopes[::2]).detach().float()
        points, thresholds = marks[::2], marks[1::2].detach().contiguous()
        if self.settings.requantize:
            unit = _integers_in_a_step(self.range)
            points = points + ((points * unit + 0.5).floor() / unit - points).detach()
        if self.range.signed:
            points = torch.cat([-points[1:].flip(0), points])
            thresholds = torch.cat([-thresholds.flip(0), thresholds])
            slopes = torch.cat([slopes[1:].flip(0), slopes])
        return CompandedGrid(self.range, points, thresholds, self.theta, knots.float(), slopes)

    @property
    def rounding(self) -> Rounding:
        """Rounding of compressed values is passed straight through; the curve learns from both of its sides."""
        return self._round

    def _round(self, x: Tensor, step: Tensor, grid: Grid) -> Tensor:
        assert isinstance(grid, CompandedGrid)
        scale = (self.range.high / (self.passes * max(1, x.numel()))) ** 0.5
        points: Tensor = _Rounded.apply(x, step, grid.table, grid.knots, grid.slopes, grid, scale)
        return points

    def _start(self) -> None:
        self.theta.zero_()
        super()._start()


def _integers_in_a_step(codes: CodeRange) -> int:
    """The largest power of two that makes 8-bit integers of points up to the highest code."""
    return 1 << ((_LARGEST[codes.signed] // codes.high).bit_length() - 1)


def _knots(theta: Tensor) -> Tensor:
    """The curve at even distances from 0 to 1, (17,), in float64 where the device has it."""
    shares = theta.to(_exact(theta.device)).softmax(0)
    return torch.cat([shares.new_zeros(1), shares.cumsum(0)])


def _expand(levels: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of the curve at compressed values from 0 to 1, and its slopes there; differentiable."""
    left = (torch.searchsorted(knots.detach(), levels, right=True) - 1).clamp_(0, INTERVALS - 1)
    widths = (knots[left + 1] - knots[left]).clamp(min=_NARROWEST)
    within = ((levels - knots[left]) / widths).clamp(0.0, 1.0)
    return (left + within) / INTERVALS, 1.0 / (INTERVALS * widths)


class _Rounded(Function):
    """The points that ``x / step`` rounds to; keeps ``x / step`` alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, table: Tensor, knots: Tensor, slopes: Tensor, grid: Grid, scale: float
    ) -> Tensor:
        in_steps = x / step
        ctx.save_for_backward(in_steps, step, slopes)
        ctx.grid, ctx.scale, ctx.kinds = grid, scale, (table.dtype, knots.dtype)
        return grid.points(grid.nearest(in_steps))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (in_steps, step, slopes), grid = grads, ctx.saved_tensors, ctx.grid
        inside = grid.within(in_steps)
        codes = (grid.nearest(in_steps) - grid.range.low).to(torch.int64)
        of_table = _sums(codes, grad, grid.range.count)
        along = in_steps.abs().clamp(max=grid.range.high) * (INTERVALS / grid.range.high)
        left = along.floor().clamp_(max=INTERVALS - 1)
        beyond_left, left = along - left, left.to(torch.int64)
        pulled = torch.where(inside, grad * in_steps.sign() * slopes[codes], 0.0)
        of_knots = _sums(left, pulled * (1 - beyond_left), INTERVALS + 1)
        of_knots += _sums(left + 1, pulled * beyond_left, INTERVALS + 1)
        of_x = torch.where(inside, grad, 0.0) / step
        of_step = torch.where(inside, grad * in_steps, 0.0).sum_to_size(step.shape) / -step
        of_curve = (ctx.scale * of_table).to(ctx.kinds[0]), (ctx.scale * of_knots).to(ctx.kinds[1])
        return of_x, of_step, *of_curve, None, None, None


def _sums(places: Tensor, values: Tensor, count: int) -> Tensor:
    """The sum of the values of each place, (count,), in float64 where the device has it."""
    exact = values.to(_exact(values.device))
    return torch.bincount(places.flatten(), exact.flatten(), count)


def _exact(device: torch.device) -> torch.dtype:
    """The most exact type that a device has."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
