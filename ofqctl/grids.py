"""What a code means: the one numeric contract between quantizers, packing, evaluation and exporters.

A quantized tensor is ``step * point + shift``. A :class:`CodeRange` says which integers a code may be, a :class:`Grid`
which point each of them stands for, in units of the step. Where rows are quantized relative to their largest magnitude,
the value is that times the magnitude.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_STEP = 2.0**-100  # a step is > 0: the floor of those that learning or rows of zeros would take to 0 or below
_LARGEST_INTEGER = 255  # that the points of a table are multiplied to


@dataclass(frozen=True)
class CodeRange:
    """The integers that a code may be.

    Attributes:
        low: Smallest code.
        high: Largest code, > ``low``.
    """

    low: int
    high: int

    @classmethod
    def of_bits(cls, bits: int, *, signed: bool) -> "CodeRange":
        """``-2**(bits-1) .. 2**(bits-1) - 1`` if signed, else ``0 .. 2**bits - 1``."""
        half = 1 << (bits - 1)
        return cls(-half, half - 1) if signed else cls(0, 2 * half - 1)

    @property
    def bits(self) -> int:
        """Bits that one code takes when stored."""
        return (self.high - self.low).bit_length()

    @property
    def count(self) -> int:
        """How many codes there are."""
        return self.high - self.low + 1

    @property
    def signed(self) -> bool:
        """Whether some codes are negative."""
        return self.low < 0

    @property
    def dtype(self) -> torch.dtype:
        """The smallest integer dtype that holds every code."""
        return torch.int8 if self.low >= -128 and self.high <= 127 else torch.int16

    def all(self) -> Tensor:
        """Every code, ascending: int64, (count,)."""
        return torch.arange(self.low, self.high + 1)


@dataclass(frozen=True, eq=False)
class Integers:
    """How the points of a grid stand on integers: ``multiplier * point = levels[code - low] + zero + rest``.

    Attributes:
        multiplier: A power of two: a step divided by it is exact.
        levels: Ascending, >= 0; int64, (codes,).
        zero: int64, () or of the shape of the step.
        rest: What a zero point has beyond an integer, float32, of the shape of ``zero``; 0 for nearly all grids.
    """

    multiplier: int
    levels: Tensor
    zero: Tensor
    rest: Tensor

    @property
    def even(self) -> bool:
        """Whether a level is ``multiplier`` times its number, so that it is computed and not looked up."""
        return torch.equal(self.levels, self.multiplier * torch.arange(len(self.levels)))


class Grid(ABC):
    """The points that codes stand for, ascending in the code; everything is in units of the step.

    A value rounds to the nearest point; the thresholds at which its code changes are the midpoints of neighbours.

    Attributes:
        range: The codes.
    """

    range: CodeRange

    @abstractmethod
    def points(self, codes: Tensor) -> Tensor:
        """What ``codes``, integers of any dtype, stand for: float, their shape."""

    @abstractmethod
    def position(self, values: Tensor) -> Tensor:
        """Where ``values`` (in steps) lie among the codes: a point at its code, a threshold halfway between two."""

    def nearest(self, values: Tensor) -> Tensor:
        """The codes of the points nearest to ``values`` (in steps), as floats; halfway it is the even one."""
        return self.position(values).round().clamp_(self.range.low, self.range.high)

    @abstractmethod
    def on_integers(self) -> Integers | None:
        """How the points stand on integers; None if no small multiplier makes them integers."""

    def tensors(self) -> dict[str, Tensor]:
        """What must be stored beside codes and steps to know the points again, by name; nothing if the plan says it."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Grid":
        """This grid with what was stored, under the names of :meth:`tensors`."""
        del tensors
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> "Grid":
        """The grid of a part or a view of the quantized tensor.

        Args:
            change: Makes of a tensor of the shape of the step what belongs to the part.
        """
        del change
        return self


@dataclass(frozen=True)
class IntegerGrid(Grid):
    """The points are the codes."""

    range: CodeRange

    def points(self, codes: Tensor) -> Tensor:
        """The codes as floats."""
        return _as_float(codes)

    def position(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values

    def on_integers(self) -> Integers:
        """They are integers."""
        low = torch.tensor(self.range.low)
        return Integers(1, self.range.all() - low, low, torch.zeros(()))


@dataclass(frozen=True, eq=False)
class AffineGrid(Grid):
    """The points are ``code + offset``.

    Attributes:
        offset: Minus the zero point of each step, of its shape; or a constant of the method, (), such as 1/2.
        whole: Whether all offsets are integers. Then values are rounded first and moved behind that, as ONNX's
            QuantizeLinear does; which of two codes a value halfway between them gets depends on it.
    """

    range: CodeRange
    offset: Tensor
    whole: bool = False

    def points(self, codes: Tensor) -> Tensor:
        """``code + offset``."""
        return _as_float(codes) + self.offset

    def position(self, values: Tensor) -> Tensor:
        """``value - offset``."""
        return values - self.offset

    def nearest(self, values: Tensor) -> Tensor:
        """As for any grid, or ``round(value) - offset``."""
        if not self.whole:
            return super().nearest(values)
        return values.round().sub_(self.offset).clamp_(self.range.low, self.range.high)

    def on_integers(self) -> Integers:
        """Offsets are integers or halves, or leave a rest."""
        offset = self.offset.detach().cpu()
        halves = 2 * offset
        multiplier = 2 if bool((halves == halves.round()).all() and (offset != offset.round()).any()) else 1
        scaled = multiplier * offset
        whole = scaled.round()
        zero = whole.to(torch.int64) + multiplier * self.range.low
        return Integers(multiplier, multiplier * (self.range.all() - self.range.low), zero, scaled - whole)

    def tensors(self) -> dict[str, Tensor]:
        """``offset``, where each step has its own."""
        return {"offset": self.offset} if self.offset.dim() else {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "AffineGrid":
        """With a stored ``offset``."""
        return replace(self, offset=tensors["offset"]) if "offset" in tensors else self

    def map(self, change: Callable[[Tensor], Tensor]) -> "AffineGrid":
        """With the offsets of the part."""
        return replace(self, offset=change(self.offset)) if self.offset.dim() else self


@dataclass(frozen=True, eq=False)
class TableGrid(Grid):
    """Any points, the same for every step.

    Attributes:
        table: The point of each code, strictly ascending, float32, (codes,).

    Raises:
        ValueError: The table does not have one point for each code.
    """

    range: CodeRange
    table: Tensor

    def __post_init__(self) -> None:
        if self.table.shape != (self.range.count,):
            raise ValueError(f"table: shape {tuple(self.table.shape)}, but there are {self.range.count} codes")

    def points(self, codes: Tensor) -> Tensor:
        """Looked up."""
        return self.table.to(codes.device)[codes.to(torch.int64) - self.range.low]

    def position(self, values: Tensor) -> Tensor:
        """Linear between neighbouring points, and beyond the outermost as between the last two."""
        table = self.table.detach().to(values)
        left = torch.bucketize(values.contiguous(), table[1:-1].contiguous(), right=True)
        return (values - table[left]) / (table[left + 1] - table[left]) + (left + self.range.low)

    def nearest(self, values: Tensor) -> Tensor:
        """By comparison with the thresholds; on one of them it is the lower code."""
        thresholds = midpoints(self.table.detach()).to(values)
        return torch.bucketize(values.contiguous(), thresholds).add_(self.range.low).to(values.dtype)

    def on_integers(self) -> Integers | None:
        """If a power of two makes integers of all of them, of 8 bits and a sign at most."""
        table = self.table.detach().cpu().double()
        multiplier, largest = 1, float(table.abs().max())
        while multiplier * largest <= _LARGEST_INTEGER:
            scaled = multiplier * table
            if bool((scaled == scaled.round()).all()):
                integers = scaled.to(torch.int64)
                zero = integers[0].clamp(max=0)
                return Integers(multiplier, integers - zero, zero, torch.zeros(()))
            multiplier *= 2
        return None

    def tensors(self) -> dict[str, Tensor]:
        """``points``."""
        return {"points": self.table}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "TableGrid":
        """With the stored ``points``."""
        return replace(self, table=tensors["points"])


def symmetric_grid(codes: CodeRange) -> Grid:
    """The grid around 0 on which the codes are integers; of 1 bit and signed it is +-1/2, which 0 would not divide."""
    if codes.signed and codes.bits == 1:
        return AffineGrid(codes, torch.tensor(0.5))
    return IntegerGrid(codes)


def midpoints(points: Tensor) -> Tensor:
    """The thresholds between ascending ``points``, (codes,): (codes - 1,)."""
    return (points[1:] + points[:-1]) / 2


def _as_float(codes: Tensor) -> Tensor:
    return codes if codes.is_floating_point() else codes.to(torch.float32)


@dataclass(frozen=True)
class Encoded:
    """A quantized tensor taken apart; every tensor broadcasts to the shape of ``codes``.

    Attributes:
        codes: Integers of ``grid.range``; int8 or int16, the shape of the tensor.
        step: What the points of the grid are multiplied by, > 0, float32.
        grid: The points that the codes stand for.
        shift: Added after scaling (the second learned shift of an activation quantizer), or None.
        largest: The largest magnitude of each row, (..., 1), by which the value is multiplied; or None.
    """

    codes: Tensor
    step: Tensor
    grid: Grid
    shift: Tensor | None = None
    largest: Tensor | None = None

    def decode(self) -> Tensor:
        """The value, float32, in exactly the arithmetic of the quantizers' forward."""
        value = self.grid.points(self.codes) * self.step
        value = value if self.shift is None else value + self.shift
        return value if self.largest is None else value * self.largest
