"""AOQ: levels and thresholds apart, so that weights settle at once (ICCV 2025).

Points and the thresholds between them have scales of their own. In the first fifth of a training both shrink to less
than a third, which pushes weights apart until few lie near a threshold; then thresholds stay and points are learned
again; at last a dampening holds weights at their points. For weights of 2 to 4 bits that are trained with a teacher, in
three phases; a step costs what learned steps cost.

At the start the standard deviation of a layer's weights over ``2**(bits - 2)`` is the scale of both: points are at
``code + 1/2`` times the scale of levels, which is the step of the grid, thresholds at whole numbers times the scale of
thresholds, which is kept as a ratio to it. The gradient passes through rounding for every weight, clipped ones
included; a step gets that of its points, scaled as in LSQ. ``shrinking`` is the remedy of the first phase; in phases
without it thresholds stay where they are while steps learn.

Our decisions: one step for a whole layer, as published; activations are quantized by another method.
"""

import torch
from torch import Tensor, nn

from ofqctl.errors import RecipeError
from ofqctl.grids import SMALLEST_STEP, Encoded, TableGrid
from ofqctl.quantizers.base import Quantizer
from ofqctl.quantizers.cores import step_gradient_scale
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import QuantizerPlan
from ofqctl.registry import Frozen


class AOQSettings(Frozen):
    """AOQ has no settings."""

    def refused(self, bits: int) -> str | None:
        """1 bit has one threshold, which is 0 whatever its scale is."""
        return "aoq has 2-8 bits: at 1 bit the one threshold is 0 whatever its scale is" if bits == 1 else None


@QUANTIZERS.register("aoq", AOQSettings, roles=["weights"], traits=["one_step"])
class AOQ(Quantizer):
    """Points half a step off the codes, and thresholds with a scale of their own.

    Attributes:
        threshold: Scale of the thresholds, in the shape of the step.

    Raises:
        RecipeError: The plan gives a layer more than one step.
    """

    threshold: Tensor

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.step = nn.Parameter(torch.ones(plan.step_shape))
        if self.step.numel() != 1:
            raise RecipeError(
                f"aoq: has one step for a layer, not {self.step.numel()}", hint="--set weights.granularity=tensor"
            )
        self.register_buffer("threshold", torch.ones(plan.step_shape))
        self._deviation: Tensor | None = None

    @property
    def grid(self) -> TableGrid:
        """Points at half codes, thresholds at whole numbers times their scale over the step."""
        codes = self.range.all().to(self.step.device, torch.float32)
        ratio = (self.threshold.float() / self.step.detach().float().clamp(min=SMALLEST_STEP)).reshape(())
        return TableGrid(self.range, codes + 0.5, codes[1:] * ratio)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid; every weight gets its gradient, the step that of the points."""
        if self.observing:
            self.observe(x)
            return x
        step = self.step.float()
        grid, held = self.grid, step.detach().clamp(min=SMALLEST_STEP)
        points = grid.points(grid.nearest(x.detach().float() / held))
        learned = (step - step.detach()) * step_gradient_scale(self.range.high, x.numel()) + held
        return (points * learned).to(x.dtype) + (x - x.detach())

    def scale_to(self, step: Tensor, threshold: Tensor) -> None:
        """Set the scales of levels and of thresholds."""
        with torch.no_grad():
            self.step.copy_(step)
            self.threshold.copy_(threshold)

    def restore(self, codes: Encoded) -> None:
        """Load the step, and the scale of the stored thresholds."""
        super().restore(codes)
        thresholds = codes.grid.thresholds
        if thresholds is not None:
            self.threshold.copy_(thresholds[-1] / self.range.high * codes.step)

    def latent_of(self, codes: Encoded) -> Tensor:
        """Weights midway between the thresholds of their codes; outermost ones lie as far beyond the last."""
        ratio = codes.grid.thresholds[-1] / self.range.high if codes.grid.thresholds is not None else 1.0
        return codes.grid.points(codes.codes) * codes.step * ratio

    def _take_in(self, x: Tensor) -> None:
        self._deviation = x.float().std(correction=0)

    def finish(self) -> None:
        """Both scales start at the standard deviation over ``2**(bits - 2)``."""
        if self._deviation is None or not bool(torch.isfinite(self._deviation)):
            raise ValueError("no finite values to compute a grid step from")
        start = (self._deviation / 2.0 ** (self.plan.bits - 2)).clamp(min=SMALLEST_STEP)
        with torch.no_grad():
            self.step.fill_(float(start))
            self.threshold.fill_(float(start))
        self._deviation = None
