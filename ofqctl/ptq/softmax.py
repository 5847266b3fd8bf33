"""Grid steps of softmax outputs by the error of their product with the value.

Most softmax outputs are far smaller than a grid step. Rounding them to 0 costs little squared error each, but they
belong to the mean value that all rows share, so that the errors add up in the product. A finer grid step that clips the
largest outputs costs less. It takes seconds and is for files with one static step for each softmax output.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import cast

import torch
from torch import Tensor

from ofqctl.grids import SMALLEST_STEP
from ofqctl.hooks import shadowed
from ofqctl.layers.attention import AttentionProducts
from ofqctl.ptq.task import Task
from ofqctl.quantizers import Quantizer
from ofqctl.quantizers.base import by_group
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

_FRACTIONS = tuple(
    2.0**-k for k in torch.arange(0.0, 6.5, 0.5).tolist()
)  # candidates, as shares of the step that clips nothing


class Softmax(Frozen):
    """Grid steps of softmax outputs, chosen by the error of their product with the value; there is nothing to set."""


@PTQ_STAGES.register("softmax", Softmax)
def fit_softmax_steps(task: Task, settings: Softmax) -> None:  # noqa: ARG001
    """Try grid steps for the softmax outputs of all attention blocks at once.

    Goes through the calibration images twice: once to find the largest outputs, once to measure the errors. Meanwhile
    softmax outputs stay in float and everything else in the model is quantized.
    """
    products = [m for m in task.model.modules() if isinstance(m, AttentionProducts)]
    searches = [_SoftmaxSearch(p) for p in products if isinstance(p.softmax, Quantizer)]
    total = 2 * task.images.images
    done = 0
    findings: tuple[_Finding, ...] = (_SoftmaxSearch.find_widest, _SoftmaxSearch.add_errors)
    for finding in findings:
        with ExitStack() as watched, torch.no_grad():
            for search in searches:
                watched.enter_context(
                    shadowed(search.products, "multiply_softmax_value", partial(search.multiply, finding))
                )
            for batch in task.images:
                task.progress("fit softmax steps", done, total)
                task.model(batch)
                done += len(batch)
    task.progress("fit softmax steps", total, total)
    for search in searches:
        search.settle()


class _SoftmaxSearch:
    """Finds the grid steps of one softmax output that give the least error of the product over all batches."""

    def __init__(self, products: AttentionProducts) -> None:
        self.products = products
        self._quantizer = cast(Quantizer, products.softmax)
        self._shape = self._quantizer.plan.step_shape
        self._widest = torch.zeros_like(self._quantizer.step)
        self._errors: dict[float, Tensor] = {}

    def multiply(self, finding: "_Finding", weights: Tensor, value: Tensor) -> Tensor:
        """Multiply float softmax outputs (..., N, M) by quantized values (..., M, e); ``finding`` observes both."""
        quantized = self.products.v(value)
        finding(self, weights, value, quantized)
        product: Tensor = weights @ quantized
        return product

    def find_widest(self, weights: Tensor, _value: Tensor, _quantized: Tensor) -> None:
        """Update the largest outputs seen so far."""
        rows, _ = self._quantizer.relative(weights)
        widest = by_group(rows, self._shape).amax(dim=1).reshape(self._shape)
        self._widest = torch.maximum(self._widest, widest)

    def add_errors(self, weights: Tensor, value: Tensor, quantized: Tensor) -> None:
        """Add up the errors of every candidate."""
        grid, (rows, largest) = self._quantizer.grid, self._quantizer.relative(weights)
        wanted = weights @ value
        for fraction in _FRACTIONS:
            step = self._step(fraction)
            product = (grid.points(grid.nearest(rows / step)) * step) @ quantized
            errors = ((product if largest is None else product * largest) - wanted).square().sum(dim=-1, keepdim=True)
            error = by_group(errors, self._shape).sum(dim=1).reshape(self._shape)
            self._errors[fraction] = self._errors.get(fraction, 0.0) + error

    def settle(self) -> None:
        """Set the grid steps to the candidates with the least error."""
        best, least = self._quantizer.step, torch.full_like(self._widest, torch.inf)
        for fraction, error in self._errors.items():
            best, least = torch.where(error < least, self._step(fraction), best), torch.minimum(error, least)
        with torch.no_grad():
            self._quantizer.step.copy_(best)

    def _step(self, fraction: float) -> Tensor:
        grid = self._quantizer.grid
        highest = grid.points(torch.full_like(self._widest, grid.range.high))
        return (self._widest / highest * fraction).clamp(min=SMALLEST_STEP)


_Finding = Callable[[_SoftmaxSearch, Tensor, Tensor, Tensor], None]
