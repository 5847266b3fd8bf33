"""QuEST: grid steps from the root mean square, trusted gradients (Panferov et al., ICML 2025, arXiv 2502.05003).

Like StatsQ it learns no grid step: the range of a row is the one of least error for weights with a normal distribution
of its root mean square. Weights beyond the range get no gradient, as what rounding does to them says little about the
loss. For weights of 1 to 8 bits that are trained; the range is a little wider than StatsQ's, and rounding errors of
normal weights are smaller.

``range = alpha * rms(w)`` for each output channel, ``step = 2 * range / (2**bits - 1)``, points half a step off zero;
the gradient passes where ``|w_q - w| <= step / 2``. ``alpha`` minimizes the squared error of normal values, 1.494 at 2
bits, 2.051 at 3, 2.514 at 4. The Hadamard transform ahead of it, which makes weights normal, is not part of it: the
weights of a vision transformer are close to normal.
"""

import math

from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, Encoded
from ofqctl.quantizers.computed import ComputedStep, growing_entries
from ofqctl.recipe.methods import QUANTIZERS

_RANGES = (0.79788, 1.49353, 2.05107, 2.51393, 2.91609, 3.27660, 3.60105, 3.88494)  # of 1-8 bits, in units of the rms


@QUANTIZERS.register("quest", roles=["weights"])
class QuEST(ComputedStep):
    """Grid steps are computed from the root mean square of each output channel; clipped weights get no gradient."""

    def step_of(self, weight: Tensor) -> Tensor:
        """Grid step of every output channel of ``weight``, in the shape that the plan gives."""
        rms = weight.detach().float().square().mean(dim=self._shared(), keepdim=True).sqrt()
        return (rms / self._rms).clamp(min=SMALLEST_STEP)

    def trusted(self, in_steps: Tensor, points: Tensor) -> Tensor:
        """The weights that are not more than half a step beyond the last point."""
        return (points - in_steps).abs() <= 0.5

    def latent_of(self, codes: Encoded) -> Tensor:
        """A weight with these codes and grid steps, up to float32 rounding.

        Starts from the decoded values and changes the magnitudes until the root mean square matches the grid step.
        """
        values, shared = codes.grid.points(codes.codes), self._shared()
        lacking = self._rms**2 - values.square().mean(dim=shared, keepdim=True)
        growing = growing_entries(codes, shared, larger=lacking > 0)
        share = growing.mean(dim=shared, keepdim=True)
        half = (growing * values.abs()).mean(dim=shared, keepdim=True) / share
        change = (half.square() + lacking / share).clamp(min=0.0).sqrt() - half  # share * (d^2 + 2 half d) = lacking
        return values.sign() * (values.abs() + growing * change) * codes.step

    @property
    def _rms(self) -> float:
        """The root mean square of the weights of a channel, in grid steps."""
        bits = self.plan.bits
        return (math.ldexp(1.0, bits) - 1.0) / (2.0 * _RANGES[bits - 1])
