"""What quantizers have in common whose grid steps follow from the weights."""

from abc import abstractmethod

import torch
from torch import Tensor

from ofqctl.grids import AffineGrid, Encoded
from ofqctl.quantizers.base import Quantizer
from ofqctl.quantizers.fake_quantize import straight_through


class ComputedStep(Quantizer):
    """The grid steps are computed from the weights at every call; points lie half a step off 0."""

    @property
    def grid(self) -> AffineGrid:
        """The points are half a step off the codes."""
        return AffineGrid(self.range, torch.tensor(0.5))

    @abstractmethod
    def step_of(self, weight: Tensor) -> Tensor:
        """Grid step of every group of ``weight``, in the shape that the plan gives."""

    def encode(self, x: Tensor) -> Encoded:
        """Codes of ``x``, with the grid steps computed from ``x``."""
        step, grid = self.step_of(x), self.grid
        codes = grid.nearest(x.detach().float() / step).to(grid.range.dtype)
        return Encoded(codes, step, grid)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid; the gradient is that of the identity, of the weights that are trusted."""
        step, grid = self.step_of(x), self.grid
        in_steps = x.detach().float() / step
        points = grid.points(grid.nearest(in_steps))
        trusted = self.trusted(in_steps, points)
        passed = x if trusted is None else torch.where(trusted, x, x.detach())
        return straight_through(passed, points.mul_(step).to(x.dtype))

    def trusted(self, in_steps: Tensor, points: Tensor) -> Tensor | None:  # noqa: ARG002
        """Which weights get a gradient: bool, in their shape; None for all, clipped ones included.

        Args:
            in_steps: The latent weights in grid steps.
            points: The points that they are rounded to.
        """
        return None

    def restore(self, codes: Encoded) -> None:
        """Nothing to restore: grid steps are computed from the weights."""

    def _shared(self) -> list[int]:
        """The dimensions that share a grid step."""
        return [d for d, size in enumerate(self.plan.step_shape) if size == 1]

    def _take_in(self, x: Tensor) -> None:
        """Nothing to observe: grid steps are computed from the weights."""

    def finish(self) -> None:
        """Nothing to finish."""


def growing_entries(codes: Encoded, shared: list[int], *, larger: Tensor) -> Tensor:
    """Which magnitudes to change so that the size of a group becomes another, and no code changes: 1 or 0 for each.

    To become larger, those of the outermost codes, which have no upper bound; all of them if there are none, or to
    become smaller. Changes of all magnitudes must be at most half a step.

    Args:
        codes: The codes.
        shared: The dimensions that share a grid step.
        larger: Whether the size of a group must grow; broadcasts to the codes.
    """
    points = codes.grid.points(codes.codes)
    outermost = (points.abs() > codes.grid.range.high).float()
    return torch.where(larger & (outermost.sum(dim=shared, keepdim=True) > 0), outermost, 1.0)
