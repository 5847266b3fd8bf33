"""StatsQ: grid steps from the statistics of the weights (Liu et al., ICML 2023, arXiv 2302.02210).

The weight quantizer of OFQ. Its grid step follows from the mean magnitude of the weights of a row, so there is nothing
to learn that could swing to and fro, and its points lie half a step off zero, so that all codes are used. For weights
of 2 to 4 bits that are trained; it costs no more than learned steps.
"""

from torch import Tensor

from ofqctl.grids import SMALLEST_STEP, Encoded
from ofqctl.quantizers.computed import ComputedStep, growing_entries
from ofqctl.recipe.methods import QUANTIZERS


@QUANTIZERS.register("statsq", roles=["weights"])
class StatsQ(ComputedStep):
    """Grid steps are computed from the weights; points lie half a step off 0, so that all codes are used symmetrically.

    Per output channel ``s = 2 * mean|w|``, ``step = s / 2**(bits - 1)``, ``offset = 0.5``; the backward pass is the
    identity for every weight, clipped ones included, and ``s`` gets no gradient.
    """

    def step_of(self, weight: Tensor) -> Tensor:
        """Grid step of every output channel of ``weight``, in the shape that the plan gives."""
        mean = weight.detach().float().abs().mean(dim=self._shared(), keepdim=True)
        return (2.0 * mean / (1 << (self.plan.bits - 1))).clamp(min=SMALLEST_STEP)

    def latent_of(self, codes: Encoded) -> Tensor:
        """A weight with these codes and grid steps, up to float32 rounding.

        Starts from the decoded values and changes the magnitudes until the mean of each channel matches its grid step.
        """
        values, shared = codes.grid.points(codes.codes), self._shared()
        lacking = (1 << self.plan.bits) / 4 - values.abs().mean(dim=shared, keepdim=True)
        growing = growing_entries(codes, shared, larger=lacking > 0)
        magnitudes = values.abs() + growing * lacking / growing.mean(dim=shared, keepdim=True)
        return values.sign() * magnitudes * codes.step
