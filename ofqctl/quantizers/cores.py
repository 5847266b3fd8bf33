"""The arithmetic of fake quantization as three pure functions: forward, decoding, and gradients.

For backward, one integer is kept for each element. Its high bits hold the code; its low bits hold the distance to the
code in fractions of a grid step, or 0 for an element outside of the grid. It takes 2 bytes for codes of up to 4 bits
and 3 bytes above, each byte in a tensor of its own, because compilers vectorize bytes and floats but not 16-bit
integers.

In eager mode each line is a pass over memory; `ofqctl.quantizers.fusing` compiles each function into a single pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, CodeRange

SMALLEST_ROW = torch.finfo(torch.float32).tiny  # lower bound of the largest magnitudes of rows

Offset = Tensor | None  # None if the points are the codes, which saves two passes over memory


@dataclass(frozen=True)
class Layout:
    """How a code and a distance share one integer.

    Attributes:
        range: Range of the codes.
        whole: Whether offsets are integers; see `ofqctl.grids.AffineGrid`.
    """

    range: CodeRange
    whole: bool = False

    @property
    def planes(self) -> int:
        """Number of bytes of the integer."""
        return 2 if self.range.bits <= 4 else 3

    @property
    def low_bits(self) -> int:
        """Number of bits of the distance, 12-19."""
        return 8 * self.planes - self.range.bits

    @property
    def zero(self) -> int:
        """What a distance of 0 is stored as; ``1 .. 2 * zero - 1`` stands for -0.5..0.5 steps."""
        return 1 << (self.low_bits - 1)

    @property
    def per_step(self) -> float:
        """Units of the stored distance in one grid step."""
        return 2.0 * (self.zero - 1)


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


def _beside_codes(in_steps: Tensor, codes: Tensor, offset: Offset, layout: Layout) -> tuple[Tensor, Tensor]:
    """Distances from values in steps to the points of their codes, and which values lie beyond the outermost points."""
    low, high = layout.range.low, layout.range.high
    if offset is None:
        return codes - in_steps, (in_steps < low) | (in_steps > high)
    if layout.whole:
        return (codes + offset).sub_(in_steps), (in_steps < low + offset) | (in_steps > high + offset)
    position = in_steps - offset
    return codes - position, (position < low) | (position > high)


def value_of(codes: Tensor, step: Tensor, offset: Offset, after: Tensor | None) -> Tensor:
    """``(codes + offset) * step + after``, in place on float ``codes``."""
    moved = codes if offset is None else codes.add_(offset)
    value = moved.mul_(step)
    return value if after is None else value.add_(after)


def snap_and_keep(
    x: Tensor,
    step: Tensor,
    offset: Offset,
    before: Tensor | None,
    after: Tensor | None,
    layout: Layout,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """The quantized value of ``x`` as ``dtype``, then the bytes to keep, uint8, low bytes first; all shaped like ``x``.

    If the last dimension of ``x`` is the innermost in memory, as in a head of a projection, all results are contiguous,
    as the matrix product that follows needs them.
    """
    moved = x.float() if before is None else x + before
    if x.stride()[-1:] == (1,):
        moved = moved.contiguous()
    in_steps = moved / step.clamp(min=SMALLEST_STEP)
    codes = nearest_codes(in_steps.clone(), offset, layout)
    distance, beyond = _beside_codes(in_steps, codes, offset, layout)
    kept = distance.mul_(layout.per_step).round_().add_(layout.zero).masked_fill_(beyond, 0.0)
    kept = kept.add_(codes - layout.range.low, alpha=1 << layout.low_bits)
    planes = []
    for _ in range(layout.planes - 1):
        rest = (kept * 2.0**-8).floor_()
        planes.append(kept.sub_(rest, alpha=1 << 8).to(torch.uint8))
        kept = rest
    return value_of(codes, step.clamp(min=SMALLEST_STEP), offset, after).to(dtype), *planes, kept.to(torch.uint8)


def decode_kept(
    planes: Sequence[Tensor],
    step: Tensor,
    offset: Offset,
    after: Tensor | None,
    layout: Layout,
    dtype: torch.dtype,
) -> Tensor:
    """Decode the bytes that ``snap_and_keep`` returned to exactly the same value."""
    codes, _ = _taken_apart(planes, layout)
    return value_of(codes, step.clamp(min=SMALLEST_STEP), offset, after).to(dtype)


def _taken_apart(planes: Sequence[Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """Codes and stored distances as floats, which represent both exactly."""
    first, *others = planes
    low = first.to(torch.float32)
    for position, plane in enumerate(others, 1):
        low = low.add_(plane.to(torch.float32), alpha=1 << (8 * position))
    high = (low * 2.0**-layout.low_bits).floor_()
    low = low.sub_(high, alpha=1 << layout.low_bits)
    return high.add_(layout.range.low) if layout.range.low else high, low


def gradients(
    grad: Tensor,
    planes: Sequence[Tensor],
    offset: Offset,
    layout: Layout,
    shapes: tuple[torch.Size | None, ...],
    dtype: torch.dtype,
    passes: int,
) -> tuple[Tensor | None, ...]:
    """Gradients of the input, the grid step, and the shifts before and after rounding.

    Args:
        grad: Gradient of the value, in its shape.
        planes: The bytes from ``snap_and_keep``, each in that shape.
        offset: Offset of the grid, broadcasts to ``grad``.
        layout: Layout of the integers.
        shapes: Shapes of the four gradients; None for a gradient that is not needed.
        dtype: Type of the gradient of the input.
        passes: Forward passes in one optimizer step; the gradient of the grid step is scaled by the elements of all of
            them.
    """
    of_x, of_step, of_before, of_after = shapes
    grad = grad.float()
    codes, low = _taken_apart(planes, layout)
    beyond = low == 0
    grad_x = grad_step = grad_before = grad_after = None
    if of_x is not None or of_before is not None:
        passed = grad.masked_fill(beyond, 0.0)
        grad_x = None if of_x is None else passed.to(dtype)
        grad_before = None if of_before is None else passed.sum_to_size(of_before)
    if of_after is not None:
        grad_after = grad.sum_to_size(of_after)
    if of_step is not None:
        inside = low.sub_(layout.zero).mul_(1.0 / layout.per_step)
        slope = torch.where(beyond, codes if offset is None else codes.add_(offset), inside)
        shared = passes * grad.numel() / max(1, of_step.numel())
        scale = step_gradient_scale(layout.range.high, shared)
        grad_step = slope.mul_(grad).sum_to_size(of_step).mul_(scale)
    return grad_x, grad_step, grad_before, grad_after


def step_gradient_scale(high: int, shared: float) -> float:
    """The factor that scales the gradient of a learned grid step (Esser et al. 2020, section 2.2).

    Args:
        high: The largest code.
        shared: Number of elements that share the grid step.
    """
    return float((max(1, high) * shared) ** -0.5)
