"""Fake quantization that saves memory and passes over memory; see `reference` for the same in plain code."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks

from ofqctl.grids import AffineGrid, Grid, IntegerGrid
from ofqctl.internals import kept_by_activation
from ofqctl.quantizers import reference
from ofqctl.quantizers.computing import compute_gradients, compute_value, value_in_parts
from ofqctl.quantizers.cores import Layout, Offset, over_largest
from ofqctl.quantizers.reference import Rounding


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
        return value_in_parts(x, step, before, after, offset, layout, relative=relative).to(dtype)
    rows, largest = over_largest(x) if relative else (x, None)
    if affine and rounding is None:
        between = torch.float32 if relative else dtype
        given = step, before, after, offset, layout, between, passes, kept_by_activation(rows)
        value: Tensor = _FakeQuantize.apply(rows, *given)
    else:
        value = reference.fake_quantize(rows, step, grid, before, after, passes, rounding)
    return (value if largest is None else value * largest).to(dtype)


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient is passed to ``x`` unchanged; both have the same shape."""
    result: Tensor = _StraightThrough.apply(x, value)
    return result


@contextmanager
def computed_again(*values: Tensor) -> Iterator[None]:
    """Within the block, products do not keep the quantized ``values`` (or views of them) for backward.

    They are computed again from the inputs of their quantizers, to the bit.
    """
    nodes = {v.untyped_storage().data_ptr(): (v.grad_fn, v.stride()) for v in values if _is_quantized(v)}
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
        value = _value_of(node)
        if value.stride() != stride:
            value = torch.empty_strided(value.shape, stride, dtype=value.dtype, device=value.device).copy_(value)
        return value.as_strided(*view)

    with saved_tensors_hooks(pack, unpack):
        yield


def _is_quantized(value: Tensor) -> bool:
    layout = getattr(value.grad_fn, "layout", None)  # the attributes of ``ctx`` are those of the graph node
    return isinstance(layout, Layout) and not torch.compiler.is_compiling()


def _value_of(node: Any) -> Tensor:
    """The output of a quantizer's graph node."""
    x, step, before, after = _held(node)
    return compute_value(x, step, before, after, node.offset, node.layout, node.dtype)


def _held(node: Any) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Input, step and shifts of a quantizer's graph node, which are asked for once and held until its backward.

    They are detached: where backward is differentiated, it is for the gradients that come in.
    """
    if node.held is None:
        x, *others = (None if t is None else t.detach() for t in node.saved_tensors)
        node.held = (node.compute_again() if x is None else x, *others)
    held: tuple[Tensor, Tensor, Tensor | None, Tensor | None] = node.held
    return held


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:  # noqa: ARG004
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grads[0], None


class _FakeQuantize(Function):
    """Keeps its input, unless that can be computed again from what others keep."""

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
        compute_again: Callable[[], Tensor] | None,
    ) -> Tensor:
        ctx.offset, ctx.layout, ctx.dtype, ctx.passes = offset, layout, dtype, passes
        ctx.shapes = tuple(None if t is None else t.shape for t in (x, step, before, after))
        ctx.held, ctx.compute_again = None, compute_again
        ctx.save_for_backward(x if compute_again is None else None, step, before, after)
        return compute_value(x, step, before, after, offset, layout, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, step, before, _ = _held(ctx)
        ctx.held = None
        wanted = tuple(
            shape if needed else None for shape, needed in zip(ctx.shapes, ctx.needs_input_grad, strict=False)
        )
        of_all = compute_gradients(grads[0], x, step, before, ctx.offset, ctx.layout, wanted, ctx.passes)
        return *of_all, None, None, None, None, None
