"""Estimate which range a grid should cover, from a stream of data in bounded memory."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, AffineGrid, CodeRange, Grid, symmetric_grid

RangeMethod = Literal["minmax", "percentile", "mse"]
Fit = tuple[Tensor, Grid]  # grid steps, (groups, 1), and the grid; offsets of its own are (groups, 1) too

_BUDGET = 1 << 20  # elements kept for each quantizer, 4 MiB
_ROUNDS = (  # fractions of the step that clips nothing, then of the best so far, for the search of a step
    torch.logspace(-2.5, 0.0, 101),
    torch.logspace(-0.025, 0.025, 11),
    torch.logspace(-0.004, 0.004, 9),
)
_NARROWEST = 1e-5  # smallest grid step relative to the largest magnitude, if the range need not contain 0
_SHRINKS = torch.linspace(1.0, 0.1, 46)  # fractions of the range that the search of least squared error tries


class RangeEstimator:
    """Collects groups of values batch by batch, then fits grid steps and zero points to them.

    Minimum and maximum are exact over all values; percentiles and squared errors come from a uniform random sample of
    bounded size, drawn with a fixed seed.

    Args:
        method: Method of choosing the range.
        percentile: Share of the values, in percent, that the range covers with method ``percentile``. The rest is
            clipped: for a symmetric grid the values of largest magnitude, otherwise equally many on both sides.
    """

    def __init__(self, method: RangeMethod, percentile: float) -> None:
        self.method = method
        self.percentile = percentile
        self._low: Tensor | None = None
        self._high: Tensor | None = None
        self._sample: Tensor | None = None
        self._rate = 1.0
        self._random = torch.Generator().manual_seed(0)

    @property
    def negative(self) -> bool:
        """Whether there was a negative value."""
        return self._low is not None and bool((self._low < 0).any())

    def observe(self, rows: Tensor) -> None:
        """Observe a batch.

        Args:
            rows: Values, (groups, elements); the number of groups is the same in every call.
        """
        low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        self._low = low if self._low is None else torch.minimum(self._low, low)
        self._high = high if self._high is None else torch.maximum(self._high, high)
        if self.method != "minmax":
            self._keep(rows)

    def fit(self, codes: CodeRange, *, symmetric: bool, whole: bool = True) -> Fit:
        """Compute the grid step of each group, and the grid.

        Args:
            codes: Range of the codes; starts at 0 if not ``symmetric``.
            symmetric: Whether the grid is centred on 0; otherwise each group has a zero point.
            whole: Whether zero points are integers; otherwise both ends of the range are on the grid.

        Raises:
            ValueError: Nothing was observed, or values that are not finite.
        """
        if self._low is None or self._high is None:
            raise ValueError("no values to estimate a range from")
        if not bool(torch.isfinite(self._low).all() and torch.isfinite(self._high).all()):
            raise ValueError("values that are not finite")
        to_grid = _symmetric if symmetric else (_asymmetric if whole else _between)
        if self.method == "percentile" and symmetric:
            return self._step_of_percentile(codes)
        if self.method == "percentile":
            return to_grid(*self._percentiles(with_zero=whole), codes)
        if self.method == "mse":
            return self._least_error(to_grid, codes, both_ends=not symmetric)
        return to_grid(self._low, self._high, codes)

    def _keep(self, rows: Tensor) -> None:
        """Add to the sample; once it is full, halve the sample and the sampling rate."""
        groups, count = rows.shape
        budget = max(1024, _BUDGET // groups)
        self._rate = min(self._rate, budget / count)
        taken = max(1, int(self._rate * count))
        if taken < count:
            rows = rows[:, torch.randint(count, (taken,), generator=self._random).to(rows.device)]
        sample = rows.clone() if self._sample is None else torch.cat([self._sample, rows], dim=1)
        if sample.shape[1] > budget:
            half = torch.randperm(sample.shape[1], generator=self._random)[: budget // 2]
            sample, self._rate = sample[:, half.to(rows.device)], self._rate * budget / 2 / sample.shape[1]
        self._sample = sample

    def _step_of_percentile(self, codes: CodeRange) -> Fit:
        """The grid step with which a symmetric grid covers all but the values of largest magnitude."""
        assert self._sample is not None
        needed, grid = _symmetric(self._sample, self._sample, codes)
        return needed.sort(dim=1).values[:, -1 - self._left_out, None], grid

    def _percentiles(self, *, with_zero: bool) -> tuple[Tensor, Tensor]:
        """Both ends of a range that leaves out equally many values below and above it.

        If the range must contain 0 and one side has too few values to leave out, more are left out on the other side.
        """
        assert self._sample is not None
        ordered = self._sample.sort(dim=1).values
        last, left_out = ordered.shape[1] - 1, self._left_out
        below = torch.full_like(ordered[:, :1], left_out // 2, dtype=torch.int64)
        above = left_out - below
        if with_zero:
            negatives, positives = ((side > 0).sum(dim=1, keepdim=True) for side in (-ordered, ordered))
            above = torch.minimum(left_out - torch.minimum(below, negatives), positives)
            below = torch.minimum(left_out - above, negatives)
        return ordered.gather(1, below), ordered.gather(1, last - above)

    @property
    def _left_out(self) -> int:
        """Number of values in each group that the range leaves out."""
        assert self._sample is not None
        return round((1.0 - self.percentile / 100.0) * (self._sample.shape[1] - 1))

    def _least_error(self, to_grid: "ToGrid", codes: CodeRange, *, both_ends: bool) -> Fit:
        """Shrink both ends together, then each end separately for an asymmetric grid, to the least squared error."""
        assert self._sample is not None and self._low is not None and self._high is not None
        low, high = self._low, self._high
        rounds = [(1, 1), (0, 1), (1, 0)] if both_ends else [(1, 1)]
        for shrink_low, shrink_high in rounds:
            best = torch.full_like(low, torch.inf)
            best_low, best_high = low, high
            for factor in _SHRINKS.tolist():
                at = low * (factor if shrink_low else 1.0), high * (factor if shrink_high else 1.0)
                error = _squared_error(self._sample, *to_grid(*at, codes))
                better = error < best
                best = torch.where(better, error, best)
                best_low, best_high = torch.where(better, at[0], best_low), torch.where(better, at[1], best_high)
            low, high = best_low, best_high
        return to_grid(low, high, codes)


ToGrid = Callable[[Tensor, Tensor, CodeRange], Fit]


def _symmetric(low: Tensor, high: Tensor, codes: CodeRange) -> Fit:
    grid = symmetric_grid(codes)
    bottom, top = grid.points(torch.tensor([codes.low, codes.high]))
    step = high / top
    if codes.signed:
        step = torch.maximum(step, low / bottom)
    return step.clamp(min=SMALLEST_STEP), grid


def _asymmetric(low: Tensor, high: Tensor, codes: CodeRange) -> Fit:
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)  # 0 is always on the grid
    step = ((high - low) / codes.high).clamp(min=SMALLEST_STEP)
    return step, AffineGrid(codes, (low / step).round().clamp(-codes.high, 0), whole=True)


def _between(low: Tensor, high: Tensor, codes: CodeRange) -> Fit:
    largest = torch.maximum(low.abs(), high.abs())
    step = torch.maximum((high - low) / codes.high, _NARROWEST * largest).clamp(min=SMALLEST_STEP)
    return step, AffineGrid(codes, low / step)


def _squared_error(rows: Tensor, step: Tensor, grid: Grid) -> Tensor:
    return grid.points(grid.nearest(rows / step)).mul_(step).sub_(rows).square_().mean(dim=1, keepdim=True)


def step_of_least_error(rows: Tensor, grid: Grid) -> Tensor:
    """The grid step with the least squared error between values and points.

    Args:
        rows: Values, (groups, elements).
        grid: Grid of all groups; its highest point is > 0.

    Returns:
        Grid steps, (groups, 1), > 0.
    """
    top = grid.points(torch.tensor(grid.range.high))
    best = (rows.abs().amax(dim=1, keepdim=True) / top).clamp(min=SMALLEST_STEP)
    least = torch.full_like(best, torch.inf)
    for fractions in _ROUNDS:
        centre = best
        for fraction in fractions.tolist():
            step = (centre * fraction).clamp(min=SMALLEST_STEP)
            error = _squared_error(rows, step, grid)
            best, least = torch.where(error < least, step, best), torch.minimum(error, least)
    return best
