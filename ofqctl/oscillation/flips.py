"""Codes of one weight from step to step: which flip, and how often a code flips back."""

import torch
from torch import Tensor

from ofqctl.grids import CodeRange, Encoded

_INT8 = torch.iinfo(torch.int8)


class Flips:
    """Follows the codes of one weight.

    A *flip* is a code that differs from the one before; an *oscillation* is a flip opposite in direction to the last
    flip of the same weight. Its frequency is the moving average ``f <- m * o + (1 - m) * f`` with ``o`` 1 at an
    oscillation and 0 otherwise (Nagel et al., ICML 2022, arXiv 2203.11086, Eq. 4).

    Attributes:
        codes: Of the newest step, int8, of the weight's shape; see :func:`as_int8`.
        direction: Of the last flip: 1 up, -1 down, 0 if there was none; int8.
        frequency: float32.
    """

    def __init__(self, encoded: Encoded) -> None:
        self.codes = as_int8(encoded)
        self.direction = torch.zeros_like(self.codes)
        self.frequency = torch.zeros_like(self.codes, dtype=torch.float32)

    def update(self, encoded: Encoded, momentum: float) -> tuple[Tensor, Tensor]:
        """Take note of the codes of a new step.

        Args:
            encoded: The weight after the step.
            momentum: ``m``, the weight of the newest step, 0 to 1.

        Returns:
            Which entries of the flattened weight flipped, and which of these oscillated, (flips,) both; it is few, and
            only there is more to do.
        """
        codes = as_int8(encoded)
        flipped = (codes != self.codes).view(-1).nonzero().squeeze(1)
        up = codes.view(-1)[flipped] > self.codes.view(-1)[flipped]
        direction = up.to(torch.int8).mul_(2).sub_(1)
        last = self.direction.view(-1)
        oscillates = last[flipped] == -direction
        self.frequency.mul_(1.0 - momentum)
        self.frequency.view(-1).index_add_(0, flipped, oscillates.float(), alpha=momentum)
        last[flipped] = direction
        self.codes = codes
        return flipped, oscillates


def count_parts(entries: Tensor, weights: int, parts: int) -> Tensor:
    """How many of some entries of a flattened weight lie in each of its equal parts: int64, (parts,), on the CPU.

    Args:
        entries: Indices, (entries,).
        weights: Length of the flattened weight.
        parts: Their number.
    """
    return torch.bincount((entries * parts).div(weights, rounding_mode="floor"), minlength=parts).cpu()


def as_int8(encoded: Encoded) -> Tensor:
    """The codes in one byte, contiguous; those of a range that does not fit are moved down by 128."""
    codes = encoded.codes if fits_int8(encoded.grid.range) else encoded.codes.sub(-_INT8.min)
    return codes.to(torch.int8, memory_format=torch.contiguous_format)


def fits_int8(codes: CodeRange) -> bool:
    """Whether codes of this range are stored as they are."""
    return codes.high <= _INT8.max
