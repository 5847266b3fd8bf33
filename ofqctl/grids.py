"""What a code means: the numeric contract between quantizers, packing, evaluation and exporters.

A quantized value is ``step * point + shift``, where the step is the grid step (scale). A :class:`CodeRange` says which
integers are codes, and a :class:`Grid` which point each code stands for, in units of the grid step. Where rows are
quantized relative to their largest magnitude, the value is multiplied by that magnitude.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

SMALLEST_STEP = 2.0**-100  # lower bound of grid steps, which training or rows of zeros could take to 0 or below
_LARGEST_INTEGER = 255  # largest integer that the points of a table may be scaled to


@dataclass(frozen=True)
class CodeRange:
    """The range of integers that codes are taken from.

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
        """Number of bits that a stored code takes."""
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
    """The points of a grid as integers: ``multiplier * point = levels[code - low] + zero + rest``.

    Attributes:
        multiplier: A power of two, so that dividing a grid step by it is exact.
        levels: One integer for each code, ascending, >= 0; int64, (codes,).
        zero: Integer offset; int64, a scalar or in the shape of the grid step.
        rest: Fractional part of the offset, float32, in the shape of ``zero``; 0 for nearly all grids.
    """

    multiplier: int
    levels: Tensor
    zero: Tensor
    rest: Tensor

    @property
    def even(self) -> bool:
        """Whether the level of a code is ``multiplier`` times its number, so that no table is needed."""
        return torch.equal(self.levels, self.multiplier * torch.arange(len(self.levels)))


class Grid(ABC):
    """The points that codes stand for, in ascending order; everything is in units of the grid step.

    A value rounds to the nearest point, unless the grid has thresholds of its own.

    Attributes:
        range: Range of the codes.
        thresholds: Where codes change, if not midway between neighbouring points: ascending, one between each two,
            float32, (codes - 1,); a threshold belongs to the lower code. Otherwise None.
    """

    range: CodeRange
    thresholds: Tensor | None = None

    @abstractmethod
    def points(self, codes: Tensor) -> Tensor:
        """The points of ``codes`` (integers of any dtype), as floats in the same shape."""

    @abstractmethod
    def position(self, values: Tensor) -> Tensor:
        """Continuous codes of ``values`` (in grid steps): points are at their codes, thresholds halfway between."""

    def nearest(self, values: Tensor) -> Tensor:
        """Codes that ``values`` (in grid steps) round to, as floats; ties go to the even code."""
        return self.position(values).round().clamp_(self.range.low, self.range.high)

    def within(self, values: Tensor) -> Tensor:
        """Whether ``values`` (in steps) lie between the outermost points: bool, their shape."""
        position = self.position(values)
        return (position >= self.range.low) & (position <= self.range.high)

    @abstractmethod
    def on_integers(self) -> Integers | None:
        """The points as integers; None if no small multiplier makes them integers."""

    def tensors(self) -> dict[str, Tensor]:
        """Tensors to store beside codes and grid steps, by name; empty if the plan alone defines the points."""
        return {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "Grid":
        """This grid with stored tensors, under the names of :meth:`tensors`."""
        del tensors
        return self

    def map(self, change: Callable[[Tensor], Tensor]) -> "Grid":
        """The grid of a part or a view of the quantized tensor.

        Args:
            change: Turns a tensor in the shape of the grid step into the tensor for that part or view.
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
        """The points are integers."""
        low = torch.tensor(self.range.low)
        return Integers(1, self.range.all() - low, low, torch.zeros(()))


@dataclass(frozen=True, eq=False)
class AffineGrid(Grid):
    """The points are ``code + offset``.

    Attributes:
        offset: Minus the zero point, in the shape of the grid step; or a scalar constant of the method, such as 1/2.
        whole: Whether all offsets are integers. Values are then rounded before the offset is subtracted, as in ONNX's
            QuantizeLinear, which decides the code of a value halfway between two points.
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

    def within(self, values: Tensor) -> Tensor:
        """As for any grid; where offsets are whole, without the rounding of a difference."""
        if not self.whole:
            return super().within(values)
        return (values >= self.range.low + self.offset) & (values <= self.range.high + self.offset)

    def on_integers(self) -> Integers:
        """Integer and half offsets are exact; any other leaves a rest."""
        offset = self.offset.detach().cpu()
        halves = 2 * offset
        multiplier = 2 if bool((halves == halves.round()).all() and (offset != offset.round()).any()) else 1
        scaled = multiplier * offset
        whole = scaled.round()
        zero = whole.to(torch.int64) + multiplier * self.range.low
        return Integers(multiplier, multiplier * (self.range.all() - self.range.low), zero, scaled - whole)

    def tensors(self) -> dict[str, Tensor]:
        """``offset``, if each grid step has its own."""
        return {"offset": self.offset} if self.offset.dim() else {}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "AffineGrid":
        """The grid with a stored ``offset``."""
        return replace(self, offset=tensors["offset"]) if "offset" in tensors else self

    def map(self, change: Callable[[Tensor], Tensor]) -> "AffineGrid":
        """The grid with the offsets of the part."""
        return replace(self, offset=change(self.offset)) if self.offset.dim() else self


@dataclass(frozen=True, eq=False)
class TableGrid(Grid):
    """Arbitrary points, the same for every grid step, and thresholds of their own if they have any.

    Attributes:
        table: The point of each code, strictly ascending, float32, (codes,).

    Raises:
        ValueError: The table does not have one point for each code, or one threshold between each two.
    """

    range: CodeRange
    table: Tensor
    thresholds: Tensor | None = None

    def __post_init__(self) -> None:
        if self.table.shape != (self.range.count,):
            raise ValueError(f"table: shape {tuple(self.table.shape)}, but there are {self.range.count} codes")
        if self.thresholds is not None and self.thresholds.shape != (self.range.count - 1,):
            shape = tuple(self.thresholds.shape)
            raise ValueError(f"thresholds: shape {shape}, but {self.range.count} codes have one less")

    @property
    def marks(self) -> Tensor:
        """Points and thresholds in turn: the values at whole and half codes, (2 * codes - 1,); without gradient."""
        marks = self.table.detach().repeat_interleave(2)[:-1]
        marks[1::2] = thresholds_of(self, self.table).detach()
        return marks

    def points(self, codes: Tensor) -> Tensor:
        """Look the points up in the table."""
        return self.table.to(codes.device)[codes.to(torch.int64) - self.range.low]

    def position(self, values: Tensor) -> Tensor:
        """Interpolate linearly between points and thresholds; extrapolate from the last two beyond the ends."""
        marks = self.marks.to(values)
        left = torch.bucketize(values.contiguous(), marks[1:-1].contiguous(), right=True)
        return ((values - marks[left]) / (marks[left + 1] - marks[left]) + left) / 2 + self.range.low

    def nearest(self, values: Tensor) -> Tensor:
        """Compare with the thresholds; a value on a threshold gets the lower code."""
        thresholds = thresholds_of(self, self.table).detach().to(values)
        return torch.bucketize(values.contiguous(), thresholds).add_(self.range.low).to(values.dtype)

    def on_integers(self) -> Integers | None:
        """The points as integers, if a power of two makes them integers of at most 8 bits and a sign."""
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
        """``points``, and ``thresholds`` if it has its own."""
        return {"points": self.table} | ({} if self.thresholds is None else {"thresholds": self.thresholds})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "TableGrid":
        """The grid with stored ``points`` and ``thresholds``."""
        return replace(self, table=tensors["points"], thresholds=tensors.get("thresholds"))


def symmetric_grid(codes: CodeRange) -> Grid:
    """The grid around 0 whose points are the codes; with 1 signed bit the points are +-1/2 instead."""
    if codes.signed and codes.bits == 1:
        return AffineGrid(codes, torch.tensor(0.5))
    return IntegerGrid(codes)


def thresholds_of(grid: Grid, points: Tensor) -> Tensor:
    """The thresholds of a grid with these ascending ``points``, (codes,): its own, or those midway; (codes - 1,)."""
    return (points[1:] + points[:-1]) / 2 if grid.thresholds is None else grid.thresholds


def _as_float(codes: Tensor) -> Tensor:
    return codes if codes.is_floating_point() else codes.to(torch.float32)


@dataclass(frozen=True)
class Encoded:
    """A quantized tensor as codes and all that is needed to decode them; every tensor broadcasts to ``codes``.

    Attributes:
        codes: Integers in ``grid.range``; int8 or int16, in the shape of the tensor.
        step: Grid step, by which the points are multiplied; > 0, float32.
        grid: Grid that gives the points of the codes.
        shift: Shift added after scaling (the second learned shift of an activation quantizer), or None.
        largest: Largest magnitude of each row, (..., 1), by which the value is multiplied; or None.
        positions: Continuous codes, in the shape of ``codes``, if they do not follow from one latent value; or None.
    """

    codes: Tensor
    step: Tensor
    grid: Grid
    shift: Tensor | None = None
    largest: Tensor | None = None
    positions: Tensor | None = None

    def position(self, latent: Tensor) -> Tensor:
        """Continuous codes of a weight with these latent values: points are at their codes, thresholds halfway."""
        return self.grid.position(latent / self.step) if self.positions is None else self.positions

    def map(self, change: Callable[[Tensor], Tensor]) -> "Encoded":
        """A part or a view of a weight; see :meth:`Grid.map`, and ``change`` is also given tensors like the codes."""
        positions = None if self.positions is None else change(self.positions)
        return Encoded(change(self.codes), change(self.step), self.grid.map(change), positions=positions)

    def decode(self) -> Tensor:
        """The values, float32, computed exactly as in the forward pass of the quantizers."""
        value = self.grid.points(self.codes) * self.step
        value = value if self.shift is None else value + self.shift
        return value if self.largest is None else value * self.largest
