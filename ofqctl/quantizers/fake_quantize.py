"""Fake quantization that saves memory and passes over memory; see `reference` for the same in plain code."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from ofqctl.grids import SMALLEST_STEP, AffineGrid, Grid, IntegerGrid
from ofqctl.quantizers import reference
from ofqctl.quantizers.cores import (
    SMALLEST_ROW,
    Layout,
    Offset,
    decode_kept,
    gradients,
    nearest_codes,
    over_largest,
    snap_and_keep,
    value_of,
)
from ofqctl.quantizers.fusing import run
from ofqctl.quantizers.reference import Rounding

_PART = 1 << 17  # elements


def fake_quantize(
    x: Tensor,
    step: Tensor,
    grid: Grid,
    before: Tensor | None = None,
    after: Tensor | None = None,
    passes: int = 1,
    *,
    relative: bool = False,
    rounding: Rounding | None = None,
) -> Tensor:
    """Compute ``step * point + after``, where ``point`` is what the grid rounds ``(x + before) / step`` to.

    Backward: straight-through for ``x`` inside the grid and 0 outside; for ``step`` the gradient of LSQ (Esser et al.
    2020, Eq. 3) scaled by ``1 / sqrt(grid.range.high * elements that share the step)``, where the elements are those of
    all forward passes of an optimizer step.

    Args:
        x: Tensor of any shape and float dtype.
        step: Learned or fixed grid step, broadcasts to ``x``; values that are not positive are replaced by a tiny one.
        grid: The grid; if its points are not evenly spaced, the code of `reference` runs.
        before: Learned shift added to ``x``, broadcasts to it.
        after: Learned shift added to the result, broadcasts to ``x``.
        passes: Number of forward passes in one optimizer step, each with as many elements as ``x``.
        relative: Whether each row, the last dimension of ``x``, is divided by its largest magnitude first, and the
            result multiplied by it.
        rounding: Another gradient of rounding, for which the code of `reference` runs; None for the one above.

    Returns:
        Tensor in the shape of ``x``, with the dtype of ``step``, or under autocast the dtype of the product that
        follows. It is always computed in float32.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else step.dtype
    x = x.float() if relative or x.dtype == torch.float64 else x
    step = step.float()
    before, after = (None if shift is None else shift.float() for shift in (before, after))
    affine = isinstance(grid, IntegerGrid | AffineGrid)
    offset = grid.offset if isinstance(grid, AffineGrid) else None
    layout = Layout(grid.range, isinstance(grid, AffineGrid) and grid.whole)
    graph = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, step, before, after))
    if affine and not graph:
        clamped = step.clamp(min=SMALLEST_STEP)
        return _without_graph(x, clamped, before, after, offset, layout, relative=relative).to(dtype)
    rows, largest = over_largest(x) if relative else (x, None)
    if affine and rounding is None:
        between = torch.float32 if relative else dtype
        value: Tensor = _FakeQuantize.apply(rows, step, before, after, offset, layout, between, passes)
    else:
        value = reference.fake_quantize(rows, step, grid, before, after, passes, rounding)
    return (value if largest is None else value * largest).to(dtype)


def _without_graph(
    x: Tensor,
    step: Tensor,
    before: Tensor | None,
    after: Tensor | None,
    offset: Offset,
    layout: Layout,
    *,
    relative: bool,
) -> Tensor:
    """The value in float32, contiguous; on the CPU one part of a batch after the other, which stays in the cache."""
    value = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    on_cpu = x.device.type == "cpu"
    shared = all(t is None or t.dim() < x.dim() or t.shape[0] == 1 for t in (step, before, after, offset))
    rows = max(1, _PART * len(x) // x.numel()) if on_cpu and shared and x.dim() > relative and x.numel() else 0
    # a device would have to be waited for to know the number
    whole = float(offset) if on_cpu and layout.whole and offset is not None and offset.numel() == 1 else None
    for own, place in zip(torch.split(x, rows), torch.split(value, rows), strict=True) if rows else [(x, value)]:
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


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient is passed to ``x`` unchanged; both have the same shape."""
    result: Tensor = _StraightThrough.apply(x, value)
    return result


@contextmanager
def saved_as_codes(*values: Tensor) -> Iterator[None]:
    """Within the block, products do not keep the quantized ``values`` (or views of them) for backward.

    The quantizers keep what is needed to decode each value again in backward, exactly.
    """
    nodes = {v.untyped_storage().data_ptr(): (v.grad_fn, v.stride()) for v in values if _keeps_codes(v)}
    if not nodes:
        yield
        return

    def pack(saved: Tensor) -> Any:
        found = nodes.get(saved.untyped_storage().data_ptr())
        return saved if found is None else (*found, saved.shape, saved.stride(), saved.storage_offset())

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        node, stride, *view = packed
        value = _decode(node)
        if value.stride() != stride:
            value = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device).copy_(value)
        return value.as_strided(*view)

    with saved_tensors_hooks(pack, unpack):
        yield


def _keeps_codes(value: Tensor) -> bool:
    layout = getattr(value.grad_fn, "layout", None)  # the attributes of ``ctx`` are those of the graph node
    return isinstance(layout, Layout) and not torch.compiler.is_compiling()


def _decode(node: Any) -> Tensor:
    """The output of a quantizer's graph node."""
    step, after, *planes = node.saved_tensors
    return run(planes[0].numel(), decode_kept, planes, step, node.offset, after, node.layout, node.dtype)


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:  # noqa: ARG004
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grads[0], None


class _FakeQuantize(Function):
    """Keeps one integer for each element, from which gradients and values are computed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        offset: Offset,
        layout: Layout,
        dtype: torch.dtype,
        passes: int,
    ) -> Tensor:
        ctx.offset, ctx.layout, ctx.dtype, ctx.x_dtype, ctx.passes = offset, layout, dtype, x.dtype, passes
        ctx.shapes = tuple(None if t is None else t.shape for t in (x, step, before, after))
        value, *planes = run(x.numel(), snap_and_keep, x, step, offset, before, after, ctx.layout, dtype)
        ctx.save_for_backward(step, after, *planes)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        planes = ctx.saved_tensors[2:]
        wanted = tuple(
            shape if needed else None for shape, needed in zip(ctx.shapes, ctx.needs_input_grad, strict=False)
        )
        given = (grads[0], planes, ctx.offset, ctx.layout, wanted, ctx.x_dtype, ctx.passes)
        return *run(planes[0].numel(), gradients, *given), None, None, None, None
