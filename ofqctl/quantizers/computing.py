"""Fake quantization of whole tensors: compiled in one pass, or one part of a batch after the other in the cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP
from ofqctl.quantizers.cores import (
    SMALLEST_ROW,
    Layout,
    Offset,
    nearest_codes,
    quantized,
    slopes,
    step_gradient_scale,
    value_of,
)
from ofqctl.quantizers.fusing import is_fused, run

_PART = 1 << 17  # elements


def value_in_parts(
    x: Tensor,
    step: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    offset: Offset,
    layout: Layout,
    *,
    relative: bool = False,
) -> Tensor:
    """The quantized value of ``x`` in float32, contiguous, without a graph; see `ofqctl.quantizers.fake_quantize`."""
    value, step = torch.empty(x.shape, dtype=torch.float32, device=x.device), step.clamp(min=SMALLEST_STEP)
    # a device would have to be waited for to know the number
    on_cpu = x.device.type == "cpu"
    whole = float(offset) if on_cpu and layout.whole and offset is not None and offset.numel() == 1 else None
    rows = _rows(x, step, before, after, offset) if x.dim() > relative else 0
    for own, place in _split(rows, x, value):
        moved, largest = own.float(), None
        if relative:
            largest = torch.abs(moved, out=place).amax(dim=-1, keepdim=True).clamp_(min=SMALLEST_ROW)
            moved = torch.div(moved, largest, out=place)
        moved = moved if before is None else torch.add(moved, before, out=place)
        in_steps = torch.div(moved, step, out=place)
        if whole is None:
            value_of(nearest_codes(in_steps, offset, layout), step, offset, after)
        else:  # the same in two passes less
            points = in_steps.round_().clamp_(layout.range.low + whole, layout.range.high + whole)
            value_of(points, step, None, after)
        if largest is not None:
            place.mul_(largest)
    return value


def compute_value(
    x: Tensor,
    step: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    offset: Offset,
    layout: Layout,
    dtype: torch.dtype,
) -> Tensor:
    """The quantized value of ``x`` as ``dtype``; rows that are not innermost in memory stay so."""
    if is_fused() or x.stride()[-1:] != (1,):
        return run(x.numel(), quantized, x, step, offset, before, after, layout, dtype)
    return value_in_parts(x, step, before, after, offset, layout).to(dtype)


def compute_gradients(
    grad: Tensor,
    x: Tensor,
    step: Tensor,
    before: Tensor | None,
    offset: Offset,
    layout: Layout,
    shapes: tuple[torch.Size | None, ...],
    passes: int,
) -> tuple[Tensor | None, ...]:
    """Gradients of the input, the grid step, and the shifts before and after rounding.

    Args:
        grad: Gradient of the value, in the shape of ``x``.
        x: The input, whose type its gradient gets.
        step: Grid step, broadcasts to ``x``.
        before: Shift before rounding, broadcasts to ``x``.
        offset: Offset of the grid, broadcasts to ``x``.
        layout: Layout of the grid.
        shapes: Shapes of the four gradients; None for a gradient that is not needed.
        passes: Forward passes in one optimizer step; the gradient of the grid step is scaled by the elements of all of
            them.
    """
    of_x, of_step, of_before, of_after = shapes
    rows = 0 if is_fused() else _rows(x, step, before, offset)
    passed, grad_step = [], None
    for own_grad, own in _split(rows, grad, x):
        above = own_grad.float()
        inside, slope = run(own.numel(), slopes, above, own, step, offset, before, layout, of_step=of_step is not None)
        if slope is not None:
            part = _summed(slope, of_step)
            grad_step = part if grad_step is None else grad_step.add_(part)
        if of_x is not None or of_before is not None:
            passed.append(inside)
    if of_step is not None and grad_step is not None:
        grad_step.mul_(step_gradient_scale(layout.range.high, passes * x.numel() / max(1, of_step.numel())))
    grad_x = None if not passed else passed[0] if len(passed) == 1 else torch.cat(passed)
    grad_before = None if grad_x is None or of_before is None else _summed(grad_x, of_before)
    grad_after = None if of_after is None else _summed(grad.float(), of_after)
    return None if grad_x is None or of_x is None else grad_x.to(x.dtype), grad_step, grad_before, grad_after


def _summed(x: Tensor, shape: torch.Size | None) -> Tensor:
    """The sum over all elements that share an entry of ``shape``; first over the batch, which takes the least time."""
    assert shape is not None
    if x.dim() > max(1, len(shape)):
        x = x.squeeze(0) if len(x) == 1 else x.sum(0)
    return x.sum_to_size(shape)


def _rows(x: Tensor, *shared: Tensor | None) -> int:
    """How many rows of a batch are a part: all, unless they lie on a CPU and have steps and shifts in common."""
    alike = all(t is None or t.dim() < x.dim() or t.shape[0] == 1 for t in shared)
    if x.device.type != "cpu" or not alike or not x.dim() or not x.numel():
        return 0
    return max(1, _PART * len(x) // x.numel())


def _split(rows: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The parts of tensors of so many rows each; the tensors themselves for 0."""
    return zip(*(torch.split(t, rows) if rows else (t,) for t in tensors), strict=True)
