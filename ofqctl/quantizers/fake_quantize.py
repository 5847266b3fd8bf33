"""Snap a tensor to a grid and back, as fused autograd functions that keep little for backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from ofqctl.grids import UniformGrid

Offset = float | Tensor  # 0 and 1/2 are the same for every code; zero points are tensors

MIN_STEP = 1e-5  # below this a step is numerically meaningless; LSQ's authors use the same floor

_RESIDUAL_SCALE = 65532.0  # a residual of -0.5..0.5 steps as a 16-bit integer in -32766..32766
_ABOVE, _BELOW = 32767, -32768  # marks of elements beyond the grid


def snap(x: Tensor, step: Tensor, offset: Offset, grid: UniformGrid) -> Tensor:
    """Codes of ``x`` as floats: ``clamp(round(x / step - offset))``, half to even.

    Args:
        x: Any shape.
        step: > 0, broadcasts to ``x``.
        offset: Broadcasts to ``x``.
        grid: Integer range.
    """
    return _in_steps(x, step, offset).round_().clamp_(grid.low, grid.high)


def fake_quantize(
    x: Tensor,
    step: Tensor,
    offset: Offset,
    grid: UniformGrid,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """``step * (code + offset) + after`` for the codes of ``x + before``.

    Backward: straight-through for ``x`` inside the grid and 0 outside; for ``step`` the gradient of LSQ
    (Esser et al. 2020, Eq. 3) scaled by ``1 / sqrt(grid.high * elements that share the step)``.

    Args:
        x: Any shape and float dtype.
        step: Learned or fixed, > 0, broadcasts to ``x``; floored at 1e-5.
        offset: Fixed, broadcasts to ``x``.
        grid: Integer range.
        before: Learned shift added to ``x``, broadcasts to it.
        after: Learned shift added to the result, broadcasts to ``x``.

    Returns:
        float32, the shape of ``x``.
    """
    tensors = (x, step, before, after)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        value: Tensor = _FakeQuantize.apply(x, step, before, after, offset, grid)
        return value
    moved = x.float() if before is None else x + before
    step = step.clamp(min=MIN_STEP)
    return _value(snap(moved, step, offset, grid), step, offset, after)


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """``value`` with the gradient of the identity towards ``x``; both of one shape."""
    result: Tensor = _StraightThrough.apply(x, value)
    return result


def _in_steps(x: Tensor, step: Tensor, offset: Offset) -> Tensor:
    """A fresh tensor ``x / step - offset``."""
    position = x / step
    return position if is_zero(offset) else position.sub_(offset)


def _value(codes: Tensor, step: Tensor, offset: Offset, after: Tensor | None) -> Tensor:
    """``(codes + offset) * step + after``, in place on ``codes``."""
    moved = codes if is_zero(offset) else codes.add_(offset)
    value = moved.mul_(step)
    return value if after is None else value.add_(after)


def is_zero(offset: Offset) -> bool:
    """Whether ``offset`` is the constant 0, which needs no arithmetic."""
    return isinstance(offset, float) and offset == 0.0


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:  # noqa: ARG004
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return grads[0], None


class _FakeQuantize(Function):
    """Saves 2 bytes an element: the distance to the code, or on which side of the grid the element lies."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        offset: Offset,
        grid: UniformGrid,
    ) -> Tensor:
        moved = x.float() if before is None else x + before
        step = step.clamp(min=MIN_STEP)
        position = _in_steps(moved, step, offset)
        codes = position.round().clamp_(grid.low, grid.high)
        residual = (codes - position).mul_(_RESIDUAL_SCALE).clamp_(_BELOW + 2, _ABOVE - 1).to(torch.int16)
        residual.masked_fill_(position > grid.high, _ABOVE).masked_fill_(position < grid.low, _BELOW)
        ctx.save_for_backward(residual)
        ctx.grid, ctx.offset, ctx.step_shape, ctx.x_dtype = grid, offset, step.shape, x.dtype
        ctx.before_shape = None if before is None else before.shape
        ctx.after_shape = None if after is None else after.shape
        return _value(codes, step, offset, after)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        (residual,) = ctx.saved_tensors
        needs_x, needs_step, needs_before, needs_after = ctx.needs_input_grad[:4]
        above, below = residual == _ABOVE, residual == _BELOW
        grad_x = grad_step = grad_before = grad_after = None
        if needs_x or needs_before:
            grad_x = grad.masked_fill(above | below, 0.0)
        if needs_before:
            grad_before = grad_x.sum_to_size(ctx.before_shape)  # type: ignore[union-attr]
        if needs_after:
            grad_after = grad.sum_to_size(ctx.after_shape)
        if needs_step:
            slope = residual.float().div_(_RESIDUAL_SCALE)
            slope = torch.where(above, ctx.grid.high + ctx.offset, slope)
            slope = torch.where(below, ctx.grid.low + ctx.offset, slope)
            shared = residual.numel() / max(1, ctx.step_shape.numel())
            scale = (max(1, ctx.grid.high) * shared) ** -0.5
            grad_step = slope.mul_(grad).sum_to_size(ctx.step_shape).mul_(scale)
        return (
            grad_x.to(ctx.x_dtype) if grad_x is not None else None,
            grad_step,
            grad_before,
            grad_after,
            None,
            None,
        )
