"""What a code means: the one numeric contract between quantizers, packing, evaluation and exporters.

A quantized tensor is always ``step * (code + offset) + shift``, with ``code`` an integer of a :class:`UniformGrid`;
where rows are quantized relative to their largest magnitude, it is that times the magnitude.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UniformGrid:
    """The integer range of a code.

    Attributes:
        low: Smallest code.
        high: Largest code, > ``low``.
    """

    low: int
    high: int

    @classmethod
    def of_bits(cls, bits: int, *, signed: bool) -> "UniformGrid":
        """``-2**(bits-1) .. 2**(bits-1) - 1`` if signed, else ``0 .. 2**bits - 1``."""
        half = 1 << (bits - 1)
        return cls(-half, half - 1) if signed else cls(0, 2 * half - 1)

    @property
    def bits(self) -> int:
        """Bits that one code takes when stored."""
        return (self.high - self.low).bit_length()

    @property
    def signed(self) -> bool:
        """Whether some codes are negative."""
        return self.low < 0


@dataclass(frozen=True)
class Encoded:
    """A quantized tensor taken apart; every tensor broadcasts to the shape of ``codes``.

    Attributes:
        codes: Integers of ``grid``; int8 or int16, the shape of the tensor.
        step: Distance between neighbouring values, > 0, float32.
        offset: Added to a code before it is scaled: 0.5 for StatsQ, minus the zero point for an asymmetric grid.
        grid: Range of the codes.
        shift: Added after scaling (the second learned shift of an activation quantizer), or None.
        largest: Of each row, which multiplies all of this, (..., 1); or None.
    """

    codes: Tensor
    step: Tensor
    offset: float | Tensor
    grid: UniformGrid
    shift: Tensor | None = None
    largest: Tensor | None = None

    def decode(self) -> Tensor:
        """The value, float32, in exactly the arithmetic of the quantizers' forward."""
        value = (self.codes.to(self.step.dtype) + self.offset) * self.step
        value = value if self.shift is None else value + self.shift
        return value if self.largest is None else value * self.largest


def code_dtype(grid: UniformGrid) -> torch.dtype:
    """The smallest integer dtype that holds every code of ``grid``."""
    return torch.int8 if grid.low >= -128 and grid.high <= 127 else torch.int16
