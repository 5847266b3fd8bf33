"""StatsQ: the weight quantizer of OFQ (Liu et al., ICML 2023, arXiv 2302.02210)."""

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, AffineGrid, Encoded
from ofqctl.quantizers.base import Quantizer
from ofqctl.quantizers.fake_quantize import straight_through


class StatsQ(Quantizer):
    """Steps from the weights themselves, half a step off zero: all ``2**bits`` levels used, symmetric.

    Per output channel ``s = 2 * mean|w|``, ``step = s / 2**(bits - 1)``, ``offset = 0.5``; the backward pass is the
    identity for every weight, clipped ones included, and ``s`` gets no gradient.
    """

    method = "statsq"

    @property
    def grid(self) -> AffineGrid:
        """Half a step off the codes."""
        return AffineGrid(self.range, torch.tensor(0.5))

    def step_of(self, weight: Tensor) -> Tensor:
        """Step of every output channel of ``weight``, in the broadcast shape of the plan."""
        shape = self.plan.step_shape
        shared = [d for d, size in enumerate(shape) if size == 1]
        mean = weight.detach().float().abs().mean(dim=shared, keepdim=True)
        return (2.0 * mean / (1 << (self.plan.bits - 1))).clamp(min=SMALLEST_STEP)

    def encode(self, x: Tensor) -> Encoded:
        """Codes of ``x`` with the steps that ``x`` itself gives."""
        step, grid = self.step_of(x), self.grid
        codes = grid.nearest(x.detach().float() / step).to(grid.range.dtype)
        return Encoded(codes, step, grid)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` snapped to the grid; gradient of the identity."""
        step, grid = self.step_of(x), self.grid
        points = grid.points(grid.nearest(x.detach().float() / step))
        return straight_through(x, points.mul_(step))

    def restore(self, codes: Encoded) -> None:
        """Nothing to take over: the weights give the steps."""

    def latent_of(self, codes: Encoded) -> Tensor:
        """A weight with these codes, and with their steps to the rounding of float32.

        Starts from the values and gives each channel the mean magnitude that its step stands for: the magnitudes of the
        outermost codes, which have no bound, grow; where the mean is to be less, all shrink, by half a step at most.
        Where no code is outermost, all grow by as little.
        """
        values = codes.grid.points(codes.codes)
        shared = [d for d, size in enumerate(self.plan.step_shape) if size == 1]
        lacking = (1 << self.plan.bits) / 4 - values.abs().mean(dim=shared, keepdim=True)
        outermost = (values.abs() > codes.grid.range.high).float()
        growing = torch.where((lacking > 0) & (outermost.sum(dim=shared, keepdim=True) > 0), outermost, 1.0)
        magnitudes = values.abs() + growing * lacking / growing.mean(dim=shared, keepdim=True)
        return values.sign() * magnitudes * codes.step

    def _take_in(self, x: Tensor) -> None:
        """Nothing to learn from data: the weights give the steps."""

    def finish(self) -> None:
        """Nothing to set."""
