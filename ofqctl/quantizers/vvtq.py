"""VVTQ: learned steps that mind how modules differ (Huang et al., TMLR 2024, arXiv 2307.00331).

Learned steps as in LSQ, changed where the parts of a vision transformer differ: query, key and value have a step each
though their weights stand in one matrix, steps learn at a rate that follows from the size of the weights, steps of
weights start at the best fit, and the input of the second MLP layer (behind GELU) is unsigned with a learned offset.
For training at 2 to 4 bits; a step of training costs what LSQ costs.

The gradient of a weight's step is multiplied by ``1 / sqrt(high * |w|_1)``, with the norm of the weights that share it,
and that of an activation's by ``1 / (sqrt(N) * high)``, with the number of its elements; ``high`` is the largest code.
A weight's step starts at ``max|w| / high``, and then codes and the step that fits them best, ``<w, c> / <c, c>``, are
computed in turn until it changes by less than 1e-5 of itself; an activation's starts at ``2 * mean|x| / sqrt(high)``.
(The norm stands inside of the root, as in the authors' code; the paper prints it outside.)

The paper's recipe adds distillation from several crops of each image (``augmentation.crops``, ``distillation: {hard:
0}``) and ``bin_regularization``.
"""

import math

import torch
from pydantic import Field
from torch import Tensor

from ofqctl.errors import RecipeError
from ofqctl.grids import SMALLEST_STEP
from ofqctl.quantizers.cores import step_gradient_scale
from ofqctl.quantizers.fake_quantize import fake_quantize
from ofqctl.quantizers.lsq import LSQ, LSQSettings
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import QuantizerPlan
from ofqctl.registry import Frozen

_CLOSE = 1e-5
_ROUNDS = 100


class VVTQWeights(Frozen):
    """Settings of weights.

    Attributes:
        parts: Number of equal parts of the rows that share a step each: 3 for query, key and value in one matrix.
    """

    parts: int = Field(default=1, ge=1)


class VVTQActivations(LSQSettings):
    """Settings of activations.

    Attributes:
        unsigned: Whether codes are never negative, whatever the data; with ``shifts`` the offset is learned.
    """

    unsigned: bool = False


class VVTQSettings(VVTQWeights, VVTQActivations):
    """All of them, as plans have them."""


@QUANTIZERS.register("vvtq", VVTQSettings, weights=VVTQWeights, activations=VVTQActivations)
class VVTQ(LSQ):
    """LSQ with steps for parts of a weight, other scales of the steps' gradients, and other starts.

    The steps of a part's rows are equal: they start so, and each gets the gradient of all.

    Raises:
        RecipeError: The rows of a weight cannot be divided into so many parts.
    """

    settings: VVTQSettings

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        self.is_weight = plan.shape is not None
        self._parts = self.settings.parts if self.step.numel() > 1 else 1
        if self.is_weight and self.step.numel() % self._parts:
            raise RecipeError(f"weights.parts: {self._parts} equal parts of {self.step.numel()} rows")
        self._weight: Tensor | None = None

    def _take_in(self, x: Tensor) -> None:
        super()._take_in(x)
        self._weight = x.float() if self.is_weight else None
        self._negative = self._negative and not self.settings.unsigned

    def finish(self) -> None:
        """Set the grid steps: of weights at the best fit, of activations by the mean magnitude."""
        super().finish()
        weight, self._weight = self._weight, None
        with torch.no_grad():
            if weight is not None:
                step = self._best_fit(weight.reshape(self._parts, -1))
                self.step.copy_(step.repeat_interleave(self.step.numel() // self._parts).view_as(self.step))
            elif not self.range.signed and self.settings.start == "mean":
                self.step.mul_(0.5)  # of twice the mean, as on a signed grid

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid, with the paper's gradients of the steps."""
        if self.observing:
            return super().forward(x)
        held = self.step.detach()
        learned = (self._of_parts(self.step) - self._of_parts(held)) * self._rate(x) + held
        return fake_quantize(x, learned, self.grid, self.before, self.after, self.passes, relative=self.plan.dynamic)

    def _of_parts(self, step: Tensor) -> Tensor:
        """The sum of the steps of each part, for each of its rows."""
        sums = step.reshape(self._parts, -1).sum(dim=1, keepdim=True)
        return sums.expand(-1, step.numel() // self._parts).reshape(step.shape)

    def _rate(self, x: Tensor) -> Tensor | float:
        """What the gradients of the steps are multiplied by, beside LSQ's own factor."""
        own = step_gradient_scale(self.range.high, self.passes * x.numel() / max(1, self.step.numel()))
        high = max(1, self.range.high)
        if not self.is_weight:
            return 1.0 / (math.sqrt(self.passes * x.numel()) * high * own)
        norms = x.detach().float().reshape(self._parts, -1).abs().sum(dim=1).clamp(min=SMALLEST_STEP)
        rate = (high * norms).rsqrt() / own
        return rate.repeat_interleave(self.step.numel() // self._parts).view_as(self.step)

    def _best_fit(self, rows: Tensor) -> Tensor:
        """The step of each row, (parts, elements), that codes and steps computed in turn come to."""
        step = (rows.abs().amax(dim=1) / max(1, self.range.high)).clamp(min=SMALLEST_STEP)
        for _ in range(_ROUNDS):
            points = self.grid.points(self.grid.nearest(rows / step[:, None]))
            fitted = (rows * points).sum(dim=1) / points.square().sum(dim=1).clamp(min=1.0)
            fitted = torch.where(fitted > 0, fitted, step)
            done = bool(((fitted - step).abs() < _CLOSE * step).all())
            step = fitted.clamp(min=SMALLEST_STEP)
            if done:
                break
        return step
