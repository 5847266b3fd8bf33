"""The grids, codes and grid steps of a quantized model as arrays that are written into a graph.

Grids are asked for their points as integers (`ofqctl.grids.Grid.on_integers`), or if that is impossible for their
points.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, CodeRange, Encoded, Grid, Integers, thresholds_of
from ofqctl.packing import pack
from ofqctl.quantizers import Quantizer

Array = NDArray[np.float32]
_UINT8_MAX, _INT8_MAX = 255, 127


@dataclass(frozen=True)
class LookupTable:
    """Points of an activation that are not evenly spaced, or thresholds that are not midway between points.

    Attributes:
        thresholds: Values at which the code changes, float32, (codes - 1,); a threshold belongs to the lower code.
        levels: Level of each code, (codes,): integers minus ``zero``, uint8; or points, float32.
        zero: Number to add to a level.
    """

    thresholds: Array
    levels: NDArray[np.uint8] | Array
    zero: int

    @property
    def integral(self) -> bool:
        """Whether the levels are integers, so that products can be computed on them."""
        return self.levels.dtype == np.uint8


@dataclass(frozen=True)
class Operand:
    """A quantized activation: ``value = step * (code + offset + rest) + after``, relative to its row if ``dynamic``.

    Attributes:
        name: Name of the quantizer in the model.
        range: Range of the codes.
        step: Grid step, > 0; a scalar if all are equal, else aligned with the last dimensions of the tensor, as are all
            other arrays.
        offset: Integer offsets, in the shape of ``step``; a scalar if all are equal.
        before: Shift added to the tensor before rounding, or None.
        after: Shift added to the value, or None.
        dynamic: Whether this applies to rows divided by their largest magnitude, which is multiplied again elsewhere.
        rest: Fractional parts of the offsets where these times the steps differ from row to row, which shifts may not;
            others are 0 here, and part of the shifts.
        table: Table that replaces ``code + offset`` if points or thresholds are not evenly spaced, or None.
    """

    name: str
    range: CodeRange
    step: Array
    offset: Array
    before: Array | None
    after: Array | None
    dynamic: bool = False
    rest: Array = field(default_factory=lambda: np.zeros((), np.float32))
    table: LookupTable | None = None

    @property
    def zero(self) -> NDArray[np.int64]:
        """Number to add to a number in the graph (a code minus the lowest code, or a level) to get the point."""
        return np.asarray(self.table.zero) if self.table else (self.offset + self.range.low).astype(np.int64)

    @property
    def bits(self) -> int:
        """Bits of the largest number in the graph."""
        return int(self.table.levels[-1]).bit_length() if self.table else self.range.bits


@dataclass(frozen=True)
class ExportedWeight:
    """A quantized weight as it is stored: the codes and grid steps of ``model.safetensors``.

    ``value = unit * (levels[stored] + zero + rest)``, where ``stored`` are the codes minus the lowest code.

    Attributes:
        name: Name that it is stored under.
        shape: Its shape: (out, in), (out, in, height, width), or (heads, out, in).
        range: Range of the codes.
        codes: Codes, integers in that shape.
        step: Grid step, in the shape that the plan gives.
        multiplier: Number that turns the points into integers.
        levels: Level of each code, (codes,): ascending integers >= 0, int64; or, if the points are not integers,
            points, float32.
        zero: Integer zeros, in the shape of ``step``, or a scalar if all are equal.
        rest: Fractional parts of the zeros, in the same shape; nearly always 0.
        transposed: Whether the output channels come last, see :meth:`as_matrix`.
    """

    name: str
    shape: tuple[int, ...]
    range: CodeRange
    codes: NDArray[np.int16]
    step: Array
    multiplier: int
    levels: NDArray[np.int64] | Array
    zero: NDArray[np.int64]
    rest: Array
    transposed: bool = False

    @property
    def packed(self) -> bytes:
        """The codes minus the lowest code, as packed by `ofqctl.packing`."""
        return pack(torch.from_numpy(self.codes) - self.range.low, self.range.bits).numpy().tobytes()

    @property
    def even(self) -> bool:
        """Whether the points are evenly spaced, so that no table is needed."""
        return bool(np.array_equal(self.levels, self.multiplier * np.arange(self.range.count)))

    @property
    def widened(self) -> bool:
        """Whether the integers are ``2 * code + 1`` of 8-bit codes, which do not fit into 8 bits."""
        return self.multiplier == 2 and self.range.bits == 8 and self.even and bool(np.all(self.zero == self._half))

    @property
    def integral(self) -> bool:
        """Whether the points are integers."""
        return bool(np.issubdtype(self.levels.dtype, np.integer))

    @property
    def overflows(self) -> bool:
        """Whether the largest integer is 128, the only one that int8 does not hold, as of powers of two of 4 bits."""
        one_zero = self.integral and not self.even and self.zero.ndim == 0
        return one_zero and self.smallest >= -_INT8_MAX - 1 and self.largest == _INT8_MAX + 1

    @property
    def obstacle(self) -> str | None:
        """Why products cannot be computed on its integers, or None."""
        if self.rest.any():
            return "the zero points of its weight are not integers"
        fits = self.levels[-1] <= _UINT8_MAX and self.zero.min() >= -_UINT8_MAX and self.zero.max() <= 0
        fits = self.integral and (fits or self.overflows)
        return None if fits or self.widened else "the points of its weight are not integers of 8 bits"

    @property
    def unit(self) -> Array:
        """Value of the integer 1."""
        return self.step / np.float32(self.multiplier)

    @property
    def smallest(self) -> int:
        """Smallest integer."""
        return int(self.levels[0] + self.zero.min())

    @property
    def largest(self) -> int:
        """Largest integer."""
        return int(self.levels[-1] + self.zero.max())

    @property
    def centre(self) -> int:
        """Number that makes int8 of its levels, and nothing else of its integers where that is possible.

        A ``widened`` weight is halved: its codes are int8.
        """
        if self.widened or self.zero.ndim or self.smallest < -_INT8_MAX - 1 or self.largest > _INT8_MAX:
            return 0 if self.levels[-1] <= _INT8_MAX and self.zero.min() > -_INT8_MAX else -_INT8_MAX - 1
        return int(self.zero)

    @property
    def magnitude(self) -> int:
        """Largest magnitude of the int8 in a product."""
        if self.widened:
            return _INT8_MAX + 1
        return int(max(-(self.levels[0] + self.centre), self.levels[-1] + self.centre))

    @property
    def _half(self) -> int:
        return 2 * self.range.low + 1

    def values(self) -> NDArray[np.float64]:
        """The decoded weight."""
        points: NDArray[np.float64] = self.levels.astype(np.float64)[self.codes - self.range.low]
        values: NDArray[np.float64] = (points + self.zero + self.rest) * self.unit
        return values

    def as_matrix(self) -> "ExportedWeight":
        """The weight as (in, out), the right factor of a product; from (..., in) or (out, in, height, width)."""
        depth = self.shape[-1] if len(self.shape) < 4 else int(np.prod(self.shape[1:]))
        codes = np.ascontiguousarray(self.codes.reshape(-1, depth).T)
        step, zero, rest = self.step.reshape(-1), self.zero, self.rest
        zero, rest = (zero.reshape(-1) if zero.ndim else zero), (rest.reshape(-1) if rest.ndim else rest)
        return replace(self, shape=codes.shape, codes=codes, step=step, zero=zero, rest=rest, transposed=True)


def operand_of(name: str, quantizer: Quantizer) -> Operand:
    """Arrays of an activation quantizer; the fractional part of an offset becomes a shift before rounding.

    Behind rounding it becomes one too, or stays with the offset if it is not the same for all rows.
    """
    step, codes = quantizer.step.detach().clamp(min=SMALLEST_STEP), quantizer.range
    before: Tensor | None = quantizer.before
    after: Tensor | None = quantizer.after
    whole, rest, table = torch.zeros(()), torch.zeros(()), None
    integers = quantizer.grid.on_integers()
    if integers is None or not integers.even or quantizer.grid.thresholds is not None:
        table, multiplier = _table(quantizer.grid, integers)
        step = step / multiplier
    else:
        offset = torch.div(integers.zero, integers.multiplier, rounding_mode="floor")
        fraction = ((integers.zero - integers.multiplier * offset + integers.rest) / integers.multiplier).to(step)
        whole, beyond = offset - codes.low, fraction * step
        if beyond.any():
            before = -beyond if before is None else before - beyond
            if beyond.shape[-2:-1] > (1,):
                rest = fraction
            else:
                after = beyond if after is None else after + beyond
    return Operand(
        name,
        codes,
        _shared(step),
        _shared(whole),
        None if before is None else _array(before),
        None if after is None else _array(after),
        quantizer.plan.dynamic,
        _shared(rest),
        table,
    )


def _table(grid: Grid, integers: Integers | None) -> tuple[LookupTable, int]:
    """The lookup table of a grid, and the number to divide the grid step by."""
    points = grid.points(grid.range.all()).detach().cpu()
    thresholds = thresholds_of(grid, points).detach().cpu()
    if integers is None or int(integers.levels[-1]) > _UINT8_MAX:
        return LookupTable(_array(thresholds), _array(points), 0), 1
    levels = integers.levels.numpy().astype(np.uint8)
    return LookupTable(_array(thresholds * integers.multiplier), levels, int(integers.zero)), integers.multiplier


def weight_of(name: str, encoded: Encoded) -> ExportedWeight:
    """Arrays of a quantized weight."""
    codes = encoded.codes.detach().cpu().to(torch.int16)
    integers = encoded.grid.on_integers()
    if integers is None:
        levels = _array(encoded.grid.points(encoded.grid.range.all()))
        multiplier, zero, rest = 1, np.zeros((), np.int64), np.zeros((), np.float32)
    else:
        multiplier, levels = integers.multiplier, integers.levels.numpy()
        zero, rest = _shared(integers.zero).astype(np.int64), _shared(integers.rest)
    shape, step = tuple(codes.shape), _array(encoded.step)
    return ExportedWeight(name, shape, encoded.grid.range, codes.numpy(), step, multiplier, levels, zero, rest)


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().float().numpy()


def _shared(tensor: Tensor) -> Array:
    """``tensor`` as an array; a scalar if all elements are equal."""
    array = _array(tensor)
    return array.reshape(-1)[0].reshape(()) if array.size and (array == array.reshape(-1)[0]).all() else array
