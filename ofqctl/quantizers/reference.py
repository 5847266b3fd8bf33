"""Fake quantization in plain autograd: read this first. The fast version gives the same values, to the bit.

`ofqctl.quantizers.fake_quantize` computes the same on affine grids, with fewer passes over memory and less kept for the
backward pass. This version takes any grid and any float dtype.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, Grid

Rounding = Callable[[Tensor, Tensor, Grid], Tensor]
"""The points that values round to, in units of the grid step, given values, step and grid; what it is to autograd is
the method's own."""


def fake_quantize(
    x: Tensor,
    step: Tensor,
    grid: Grid,
    before: Tensor | None = None,
    after: Tensor | None = None,
    passes: int = 1,
    rounding: Rounding | None = None,
) -> Tensor:
    """Compute ``step * point + after``, where ``point`` is what the grid rounds ``(x + before) / step`` to.

    Backward: rounding is treated as the identity (straight-through) between the outermost points and as a constant
    outside; the gradient of the grid step is scaled (LSQ, Esser et al. 2020, Eq. 3 and section 2.2).

    Args:
        x: Tensor of any shape.
        step: Grid step, broadcasts to ``x``; values that are not positive are replaced by a tiny one.
        grid: The grid to round to.
        before: Learned shift added to ``x``, broadcasts to it.
        after: Learned shift added to the result, broadcasts to ``x``.
        passes: Number of forward passes in one optimizer step, each with as many elements as ``x``.
        rounding: Another gradient of rounding; None for the one above.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x if before is None else x + before
    shared = passes * x.numel() / max(1, step.numel())
    step = _scale_gradient(step, (max(1, grid.range.high) * shared) ** -0.5)
    value = (rounding or straight_through)(x, step, grid) * step
    return value if after is None else value + after


def straight_through(x: Tensor, step: Tensor, grid: Grid) -> Tensor:
    """The points that ``x / step`` rounds to; to autograd the identity between the outermost points, else constant."""
    in_steps = (x / step).detach()
    passed = torch.where(grid.within(in_steps), x, 0.0) / step
    return passed - passed.detach() + grid.points(grid.nearest(in_steps))


def _scale_gradient(step: Tensor, factor: float) -> Tensor:
    """``step`` with its lower bound, and with its gradient multiplied by ``factor``."""
    return (step - step.detach()) * factor + step.detach().clamp(min=SMALLEST_STEP)
