"""What fake quantization is, in plain autograd: read this first. The fast one gives the same values, to the bit.

`ofqctl.quantizers.fake_quantize` computes the same on affine grids in fewer passes over memory and keeps less for the
backward pass; this one takes any grid and any float dtype.
"""

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, Grid


def fake_quantize(
    x: Tensor, step: Tensor, grid: Grid, before: Tensor | None = None, after: Tensor | None = None
) -> Tensor:
    """``step * point + after``, where ``point`` is the one of the grid that is nearest to ``(x + before) / step``.

    Backward: rounding is taken for the identity (straight-through) between the outermost points, and for a constant
    beyond them; the gradient of the step is scaled (LSQ, Esser et al. 2020, Eq. 3 and section 2.2).

    Args:
        x: Any shape.
        step: Broadcasts to ``x``; one that is not positive counts as tiny.
        grid: The points.
        before: Learned shift added to ``x``, broadcasts to it.
        after: Learned shift added to the result, broadcasts to ``x``.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    x = x if before is None else x + before
    shared = x.numel() / max(1, step.numel())
    step = _scale_gradient(step, (max(1, grid.range.high) * shared) ** -0.5)
    in_steps = (x / step).detach()
    place = grid.position(in_steps)
    inside = (place >= grid.range.low) & (place <= grid.range.high)
    passed = torch.where(inside, x, 0.0) / step
    value = (passed - passed.detach() + grid.points(grid.nearest(in_steps))) * step
    return value if after is None else value + after


def _scale_gradient(step: Tensor, factor: float) -> Tensor:
    """``step``, floored; its gradient times ``factor``."""
    return (step - step.detach()) * factor + step.detach().clamp(min=SMALLEST_STEP)
