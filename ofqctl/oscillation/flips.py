"""Follow the codes of one weight tensor over optimizer steps: which codes flip, and how often they flip back."""

import torch
from torch import Tensor

from ofqctl.grids import CodeRange, Encoded

_INT8 = torch.iinfo(torch.int8)
MOVED = ("moved", "signs_moved", "magnitudes_moved")  # names of what `count_moved` counts, as shares


class Flips:
    """Follows the codes of one weight tensor.

    A *flip* is a code that changed in the last optimizer step; an *oscillation* is a flip in the opposite direction of
    the last flip of the same weight. The frequency of a weight is the moving average ``f <- m * o + (1 - m) * f`` with
    ``o`` 1 at an oscillation and 0 otherwise (Nagel et al., ICML 2022, arXiv 2203.11086, Eq. 4).

    Attributes:
        codes: Codes after the latest optimizer step, int8, in the shape of the weight; see :func:`as_int8`.
        direction: Direction of the last flip: 1 up, -1 down, 0 if there was none; int8.
        frequency: Oscillation frequency of each weight, float32.
    """

    def __init__(self, encoded: Encoded) -> None:
        self.codes = as_int8(encoded)
        self.direction = torch.zeros_like(self.codes)
        self.frequency = torch.zeros_like(self.codes, dtype=torch.float32)

    def update(self, encoded: Encoded, momentum: float) -> tuple[Tensor, Tensor]:
        """Update with the codes after an optimizer step.

        Args:
            encoded: The encoded weight after the optimizer step.
            momentum: ``m``, the weight of the latest optimizer step in the average, 0 to 1.

        Returns:
            Indices of the entries that flipped, in the flattened weight, and which of these oscillated; both (flips,).
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
    """Count how many entries lie in each of the equal parts of a flattened weight: int64, (parts,), on the CPU.

    Args:
        entries: Indices of the entries, (entries,).
        weights: Number of elements of the weight.
        parts: Number of parts.
    """
    return torch.bincount((entries * parts).div(weights, rounding_mode="floor"), minlength=parts).cpu()


def count_moved(start: Tensor, encoded: Encoded) -> Tensor:
    """How many codes, signs and magnitudes are not those at the start: int64, (3,), on the CPU.

    Signs and magnitudes are those of the points on the grid as it is now; 0 has a sign of its own.

    Args:
        start: Codes at the start, as from :func:`as_int8`.
        encoded: The weight now.
    """
    now, codes = as_int8(encoded), encoded.grid.range
    entries = (now != start).view(-1).nonzero().squeeze(1)
    grid = encoded.grid.map(lambda tensor: tensor.expand(now.shape).flatten()[entries])
    moved = (
        tensor.view(-1)[entries].to(torch.int16) - (0 if fits_int8(codes) else _INT8.min) for tensor in (start, now)
    )
    before, after = (grid.points(part) for part in moved)
    signs, magnitudes = before.sign() != after.sign(), before.abs() != after.abs()
    return torch.stack([signs.new_ones(len(signs)).sum(), signs.sum(), magnitudes.sum()]).cpu()


def as_int8(encoded: Encoded) -> Tensor:
    """The codes as contiguous int8; if their range does not fit, 128 is subtracted."""
    codes = encoded.codes if fits_int8(encoded.grid.range) else encoded.codes.sub(-_INT8.min)
    return codes.to(torch.int8, memory_format=torch.contiguous_format)


def fits_int8(codes: CodeRange) -> bool:
    """Whether codes of this range fit into int8 unchanged."""
    return codes.high <= _INT8.max
