"""LSQ: learned step size quantization (Esser et al., ICLR 2020), for weights and activations, as OFQ uses it."""

import torch
from torch import Tensor, nn

from ofqctl.grids import UniformGrid
from ofqctl.quantizers.base import Quantizer, by_group
from ofqctl.quantizers.cores import MIN_STEP
from ofqctl.recipe.plan import QuantizerPlan


class LSQ(Quantizer):
    """The step is a parameter, one for each group of elements that share it.

    Start value: ``2 * mean|x| / sqrt(high)`` on a signed grid, ``4 * mean|x| / sqrt(high)`` on an unsigned one.
    A plan that leaves ``signed`` open gets a signed grid as soon as the data has negatives.
    """

    method = "lsq"
    offset = 0.0

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.step = nn.Parameter(torch.ones(plan.step_shape))
        self._sum: Tensor | None = None
        self._count = 0
        self._negative = False

    def observe(self, x: Tensor) -> None:
        """Add the magnitudes of ``x`` to the running mean of each group."""
        rows = by_group(x.detach().float(), self.plan.step_shape)
        total = rows.abs().sum(dim=1, dtype=torch.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._count += rows.shape[1]
        self._negative = self._negative or bool((rows < 0).any())

    def finish(self) -> None:
        """Set the steps, and the sign of the grid where the plan leaves it open."""
        if self._sum is None or not bool(torch.isfinite(self._sum).all()):
            raise ValueError("no finite values to start the step from")
        signed = self._negative if self.plan.signed is None else self.plan.signed
        self.grid = UniformGrid.of_bits(self.plan.bits, signed=signed)
        start = (2.0 if signed else 4.0) * self._sum / self._count / max(1, self.grid.high) ** 0.5
        with torch.no_grad():
            self.step.copy_(start.clamp(min=MIN_STEP).reshape(self.step.shape))
        self._sum, self._count, self._negative = None, 0, False
