"""StatsQ: grid steps from the statistics of the weights (Liu et al., ICML 2023, arXiv 2302.02210).

The weight quantizer of OFQ. Its grid step follows from the mean magnitude of the weights of a row, so there is nothing
to learn that could swing to and fro, and its points lie half a step off zero, so that all codes are used. For weights
of 2 to 4 bits that are trained; it costs no more than learned steps.
"""

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, AffineGrid, Encoded
from ofqctl.quantizers.base import Quantizer
from ofqctl.quantizers.fake_quantize import straight_through
from ofqctl.recipe.methods import QUANTIZERS


@QUANTIZERS.register("statsq", roles=["weights"])
class StatsQ(Quantizer):
    """Grid steps are computed from the weights; points lie half a step off 0, so that all codes are used symmetrically.

    Per output channel ``s = 2 * mean|w|``, ``step = s / 2**(bits - 1)``, ``offset = 0.5``; the backward pass is the
    identity for every weight, clipped ones included, and ``s`` gets no gradient.
    """

    @property
    def grid(self) -> AffineGrid:
        """The points are half a step off the codes."""
        return AffineGrid(self.range, torch.tensor(0.5))

    def step_of(self, weight: Tensor) -> Tensor:
        """Grid step of every output channel of ``weight``, in the shape that the plan gives."""
        shape = self.plan.step_shape
        shared = [d for d, size in enumerate(shape) if size == 1]
        mean = weight.detach().float().abs().mean(dim=shared, keepdim=True)
        return (2.0 * mean / (1 << (self.plan.bits - 1))).clamp(min=SMALLEST_STEP)

    def encode(self, x: Tensor) -> Encoded:
        """Codes of ``x``, with the grid steps computed from ``x``."""
        step, grid = self.step_of(x), self.grid
        codes = grid.nearest(x.detach().float() / step).to(grid.range.dtype)
        return Encoded(codes, step, grid)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid; the gradient is that of the identity."""
        step, grid = self.step_of(x), self.grid
        points = grid.points(grid.nearest(x.detach().float() / step))
        return straight_through(x, points.mul_(step).to(x.dtype))

    def restore(self, codes: Encoded) -> None:
        """Nothing to restore: grid steps are computed from the weights."""

    def latent_of(self, codes: Encoded) -> Tensor:
        """A weight with these codes and grid steps, up to float32 rounding.

        Starts from the decoded values and changes the magnitudes until the mean of each channel matches its grid step.
        To raise the mean, the magnitudes of the outermost codes grow, which have no upper bound; if there are none, all
        magnitudes grow. To lower it, all shrink. Changes of all magnitudes are at most half a step.
        """
        values = codes.grid.points(codes.codes)
        shared = [d for d, size in enumerate(self.plan.step_shape) if size == 1]
        lacking = (1 << self.plan.bits) / 4 - values.abs().mean(dim=shared, keepdim=True)
        outermost = (values.abs() > codes.grid.range.high).float()
        growing = torch.where((lacking > 0) & (outermost.sum(dim=shared, keepdim=True) > 0), outermost, 1.0)
        magnitudes = values.abs() + growing * lacking / growing.mean(dim=shared, keepdim=True)
        return values.sign() * magnitudes * codes.step

    def _take_in(self, x: Tensor) -> None:
        """Nothing to observe: grid steps are computed from the weights."""

    def finish(self) -> None:
        """Nothing to finish."""
