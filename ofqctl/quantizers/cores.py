"""The arithmetic of fake quantization as two pure functions, element by element: the value, and its gradients.

Both are computed from the input, which is all that is kept for backward: other layers keep it, too.

In eager mode each line is a pass over memory; `ofqctl.quantizers.fusing` compiles each function into a single pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, CodeRange

SMALLEST_ROW = torch.finfo(torch.float32).tiny  # lower bound of the largest magnitudes of rows
_TINY = torch.finfo(torch.float32).tiny

Offset = Tensor | None  # None if the points are the codes, which saves two passes over memory


@dataclass(frozen=True)
class Layout:
    """Which points an evenly spaced grid has, beside its offset.

    Attributes:
        range: Range of the codes.
        whole: Whether offsets are integers; see `ofqctl.grids.AffineGrid`.
    """

    range: CodeRange
    whole: bool = False


def over_largest(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (the last dimension) divided by their largest magnitudes, and these, (..., 1); a row of zeros stays zero."""
    largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_ROW)
    return x / largest, largest


def nearest_codes(in_steps: Tensor, offset: Offset, layout: Layout) -> Tensor:
    """The codes of the points nearest to values in steps, as floats, in place of the values."""
    low, high = layout.range.low, layout.range.high
    if offset is None:
        return in_steps.clamp_(low, high).round_()
    if layout.whole:
        return in_steps.round_().sub_(offset).clamp_(low, high)
    return in_steps.sub_(offset).clamp_(low, high).round_()


def _excess(in_steps: Tensor, offset: Offset, layout: Layout) -> Tensor:
    """How far values in steps lie beyond the outermost points: 0 for those between them."""
    low, high = layout.range.low, layout.range.high
    if layout.whole and offset is not None:
        return in_steps - torch.minimum(torch.maximum(in_steps, low + offset), high + offset)
    position = in_steps if offset is None else in_steps - offset
    return position - position.clamp(low, high)


def _inside(x: Tensor, excess: Tensor) -> Tensor:
    """``x`` where ``excess`` is 0, else 0; `torch.where` does the same on a CPU five times slower."""
    chosen: Tensor = torch.ops.aten.hardtanh_backward(x, excess, -_TINY, _TINY)
    return chosen


def value_of(codes: Tensor, step: Tensor, offset: Offset, after: Tensor | None) -> Tensor:
    """``(codes + offset) * step + after``, in place on float ``codes``."""
    moved = codes if offset is None else codes.add_(offset)
    value = moved.mul_(step)
    return value if after is None else value.add_(after)


def quantized(
    x: Tensor,
    step: Tensor,
    offset: Offset,
    before: Tensor | None,
    after: Tensor | None,
    layout: Layout,
    dtype: torch.dtype,
) -> Tensor:
    """The quantized value of ``x`` as ``dtype``, in its shape.

    If the last dimension of ``x`` is the innermost in memory, as in a head of a projection, the value is contiguous, as
    the matrix product that follows needs it.
    """
    codes = nearest_codes(_in_steps(x, step, before), offset, layout)
    return value_of(codes, step.clamp(min=SMALLEST_STEP), offset, after).to(dtype)


def slopes(
    grad: Tensor,
    x: Tensor,
    step: Tensor,
    offset: Offset,
    before: Tensor | None,
    layout: Layout,
    *,
    of_step: bool,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of each element of the input and, to be summed over those that share it, of the grid step.

    Args:
        grad: Gradient of the value, float32, in the shape of ``x``.
        x: The input.
        step: Grid step, broadcasts to ``x``.
        offset: Offset of the grid, broadcasts to ``x``.
        before: Shift before rounding, broadcasts to ``x``.
        layout: Layout of the grid.
        of_step: Whether the gradient of the grid step is needed.

    Returns:
        Two tensors of float32 in the shape of ``x``; None for what is not needed.
    """
    in_steps = _in_steps(x, step, before)
    excess = _excess(in_steps, offset, layout)
    passed = _inside(grad, excess)
    if not of_step:
        return passed, None
    within = _inside(in_steps, excess)
    codes = nearest_codes(in_steps, offset, layout)
    points = codes if offset is None else codes.add_(offset)
    return passed, points.sub_(within).mul_(grad)


def _in_steps(x: Tensor, step: Tensor, before: Tensor | None) -> Tensor:
    """``(x + before) / step`` in float32, a new tensor; contiguous if the last dimension of ``x`` is innermost."""
    moved = x.float() if before is None else x + before
    if x.stride()[-1:] == (1,):
        moved = moved.contiguous()
    return moved / step.clamp(min=SMALLEST_STEP)


def step_gradient_scale(high: int, shared: float) -> float:
    """The factor that scales the gradient of a learned grid step (Esser et al. 2020, section 2.2).

    Args:
        high: The largest code.
        shared: Number of elements that share the grid step.
    """
    return float((max(1, high) * shared) ** -0.5)
