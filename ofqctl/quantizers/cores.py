"""The arithmetic of fake quantization as three pure functions: forward, decoding, and gradients.

For backward either the input itself is kept, or a number of two bytes for each element, a *mark*, which holds its code
and, in fractions of a grid step, its distance to the code. Marks take half of the memory, inputs less time.

In eager mode each line is a pass over memory; `ofqctl.quantizers.fusing` compiles each function into a single pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, CodeRange

HALVES = 30 << 10  # number of positive normal numbers of float16
MARKED_BITS = 4  # the most bits of codes that a mark has room for
SMALLEST_ROW = torch.finfo(torch.float32).tiny  # lower bound of the largest magnitudes of rows

Offset = Tensor | None  # None if the points are the codes, which saves two passes over memory


@dataclass(frozen=True)
class Layout:
    """The codes, and what is kept of each element.

    Attributes:
        range: Range of the codes.
        whole: Whether offsets are integers; see `ofqctl.grids.AffineGrid`.
        marked: Whether marks are kept, for codes of up to 4 bits, in place of the input. A mark is a whole number: the
            code times the ``room``, and above it the distance, which is 1 for an element outside of the grid.
    """

    range: CodeRange
    whole: bool = False
    marked: bool = False

    @property
    def room(self) -> int:
        """How many marks a code has, 3840 or more."""
        return 2 * HALVES >> self.range.bits

    @property
    def zero(self) -> int:
        """What a distance of 0 is stored as; ``2 .. 2 * zero - 2`` stands for -0.5..0.5 steps."""
        return self.room // 2

    @property
    def per_step(self) -> float:
        """Units of the stored distance in one grid step."""
        return 2.0 * (self.zero - 2)

    @property
    def middle(self) -> int:
        """The code that is stored as 0."""
        return self.range.low + (1 << (self.range.bits - 1))


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
    """Distances of values in steps, moved within the outermost points, to those of their codes; which stayed there."""
    low, high = layout.range.low, layout.range.high
    if layout.whole and offset is not None:
        within = torch.minimum(torch.maximum(in_steps, low + offset), high + offset)
        return codes + offset - within, _equal(within, in_steps)
    position = in_steps if offset is None else in_steps - offset
    within = position.clamp(low, high)
    return codes - within, _equal(within, position)


def _equal(x: Tensor, other: Tensor) -> Tensor:
    """Which elements are equal: bool, or in eager mode 1 or 0."""
    if torch.compiler.is_compiling():
        return x == other
    return (x - other).abs_().sign_().neg_().add_(1.0)


def _chosen(inside: Tensor, x: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
    """``x`` inside, something else outside; in eager mode by products, as choosing takes PyTorch far longer on CPUs."""
    if torch.compiler.is_compiling():
        return torch.where(inside, x, otherwise)
    return x * inside if isinstance(otherwise, float) else (x * inside).add_((1.0 - inside).mul_(otherwise))


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
    """The quantized value of ``x`` as ``dtype``, then the marks if they are kept; all shaped like ``x``.

    If the last dimension of ``x`` is the innermost in memory, as in a head of a projection, all results are contiguous,
    as the matrix product that follows needs them.
    """
    in_steps = _in_steps(x, step, before)
    codes = nearest_codes(in_steps.clone(), offset, layout)
    marks: tuple[Tensor, ...] = ()
    if layout.marked:
        distance, inside = _beside_codes(in_steps, codes, offset, layout)
        mark = _chosen(inside, distance.mul_(layout.per_step).round_().add_(layout.zero - 1)).add_(1.0)
        marks = (as_half(mark.add_(codes - layout.middle, alpha=layout.room)),)
    return value_of(codes, step.clamp(min=SMALLEST_STEP), offset, after).to(dtype), *marks


def decode_kept(
    kept: Tensor,
    step: Tensor,
    offset: Offset,
    before: Tensor | None,
    after: Tensor | None,
    layout: Layout,
    dtype: torch.dtype,
) -> Tensor:
    """The quantized value, exactly, from the marks if they are kept, otherwise from the input."""
    codes = (
        _of_marks(kept, layout)[0] if layout.marked else nearest_codes(_in_steps(kept, step, before), offset, layout)
    )
    return value_of(codes, step.clamp(min=SMALLEST_STEP), offset, after).to(dtype)


def gradients(
    grad: Tensor,
    kept: Tensor,
    step: Tensor,
    offset: Offset,
    before: Tensor | None,
    layout: Layout,
    shapes: tuple[torch.Size | None, ...],
    dtype: torch.dtype,
    passes: int,
) -> tuple[Tensor | None, ...]:
    """Gradients of the input, the grid step, and the shifts before and after rounding.

    Args:
        grad: Gradient of the value, in its shape.
        kept: The marks from ``snap_and_keep`` if they are kept, otherwise the input; in that shape.
        step: The grid step, broadcasts to ``grad``.
        offset: Offset of the grid, broadcasts to ``grad``.
        before: Shift before rounding, broadcasts to ``grad``.
        layout: The codes, and what is kept.
        shapes: Shapes of the four gradients; None for a gradient that is not needed.
        dtype: Type of the gradient of the input.
        passes: Forward passes in one optimizer step; the gradient of the grid step is scaled by the elements of all of
            them.
    """
    of_x, of_step, of_before, of_after = shapes
    grad = grad.float()
    if layout.marked:
        codes, low = _of_marks(kept, layout)
        inside = _equal(low, low.clamp(min=2.0))
        distance = low.sub_(layout.zero).mul_(1.0 / layout.per_step)
    else:
        in_steps = _in_steps(kept, step, before)
        codes = nearest_codes(in_steps.clone(), offset, layout)
        distance, inside = _beside_codes(in_steps, codes, offset, layout)
    grad_x = grad_step = grad_before = grad_after = None
    if of_x is not None or of_before is not None:
        passed = _chosen(inside, grad)
        grad_x = None if of_x is None else passed.to(dtype)
        grad_before = None if of_before is None else passed.sum_to_size(of_before)
    if of_after is not None:
        grad_after = grad.sum_to_size(of_after)
    if of_step is not None:
        points = codes if offset is None else codes.add_(offset)
        slopes = _chosen(inside, distance, points).mul_(grad)
        shared = passes * grad.numel() / max(1, of_step.numel())
        scale = step_gradient_scale(layout.range.high, shared)
        grad_step = slopes.sum_to_size(of_step).mul_(scale)
    return grad_x, grad_step, grad_before, grad_after


def _in_steps(x: Tensor, step: Tensor, before: Tensor | None) -> Tensor:
    """``(x + before) / step`` in float32, a new tensor; contiguous if the last dimension of ``x`` is innermost."""
    moved = x.float() if before is None else x + before
    if x.stride()[-1:] == (1,):
        moved = moved.contiguous()
    return moved / step.clamp(min=SMALLEST_STEP)


def _of_marks(marks: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """Codes and stored distances as floats, which represent both exactly."""
    low = of_half(marks)
    high = ((low + 0.5) * (1.0 / layout.room)).floor_()
    low = low.sub_(high, alpha=layout.room)
    return high.add_(layout.middle) if layout.middle else high, low


def step_gradient_scale(high: int, shared: float) -> float:
    """The factor that scales the gradient of a learned grid step (Esser et al. 2020, section 2.2).

    Args:
        high: The largest code.
        shared: Number of elements that share the grid step.
    """
    return float((max(1, high) * shared) ** -0.5)


def as_half(whole: Tensor) -> Tensor:
    """Integers of magnitudes below ``HALVES``, given as floats, each as a normal number of float16.

    Exponent and fraction are the bits of the magnitude. Compiled, they are put together by arithmetic, as compilers
    write to memory what they look at as another type: the number of an integer lies on a line that is bent at each
    exponent.
    """
    if not torch.compiler.is_compiling():
        upper = whole.clamp(-1.0, 0.0)
        return whole.abs().add_(1024.0).add_(upper, alpha=32768).to(torch.int16).view(torch.float16)
    exponent = whole.abs() * 2.0**-10
    group = (exponent * 0.125).floor()
    rest = exponent - group * 8.0
    line = rest + 1.0
    for bend in range(1, 8):
        line = line + (rest - bend).relu() * 2.0 ** (bend - 1)
    scale = torch.where(group < 2.0, 2.0**-14, 2.0**2) * torch.where((group == 1.0) | (group == 3.0), 2.0**8, 1.0)
    return (line * scale * torch.where(whole < 0.0, -1.0, 1.0)).to(torch.float16)


def of_half(half: Tensor) -> Tensor:
    """The integers of ``as_half``, as float32."""
    if not torch.compiler.is_compiling():
        bits = half.view(torch.int16).to(torch.float32)
        upper = bits.clamp(-1.0, 0.0)
        return bits.sub_(upper, alpha=32768).sub_(1024.0).mul_(upper.mul_(2.0).add_(1.0))
    value = half.to(torch.float32)
    size = value.abs()
    second, third, fourth = size >= 2.0**-6, size >= 2.0**2, size >= 2.0**10
    first = torch.where(fourth, 24.0, torch.where(third, 16.0, torch.where(second, 8.0, 0.0)))
    rest = size * torch.where(fourth, 2.0**-10, torch.where(third, 2.0**-2, torch.where(second, 2.0**6, 2.0**14)))
    line = rest - 1.0
    for bend in range(1, 8):
        line = line - (rest - 2.0**bend).relu() * 2.0**-bend
    return (first + line) * torch.where(value < 0.0, -(2.0**10), 2.0**10)
