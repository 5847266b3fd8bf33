"""Steps of softmax outputs, chosen by the error of what they are multiplied for: their product with the value.

Most softmax outputs are far below a step. Rounding them to 0 costs little squared error each, but takes weight from the
mean value that all rows share, which adds up in the product; a finer step that clips the largest outputs costs less.
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
from ofqctl.recipe.refining import SoftmaxStep

_FRACTIONS = tuple(2.0**-k for k in torch.arange(0.0, 6.5, 0.5).tolist())  # of the step that clips nothing


def fit_softmax_steps(task: Task, step: SoftmaxStep) -> None:  # noqa: ARG001
    """Try steps for the softmax output of every attention block at once; it stays in float for what comes behind.

    Goes through the calibration images twice, for the largest outputs and for the errors; all else in the model is
    quantized already.
    """
    products = [m for m in task.model.modules() if isinstance(m, AttentionProducts)]
    searches = [_Search(p) for p in products if isinstance(p.softmax, Quantizer)]
    total = 2 * task.images.images
    done = 0
    findings: tuple[_Finding, ...] = (_Search.find_widest, _Search.add_errors)
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


class _Search:
    """The step of one softmax output whose error in the product is least over all batches."""

    def __init__(self, products: AttentionProducts) -> None:
        self.products = products
        self._quantizer = cast(Quantizer, products.softmax)
        self._shape = self._quantizer.plan.step_shape
        self._widest = torch.zeros(self._shape)
        self._errors: dict[float, Tensor] = {}

    def multiply(self, finding: "_Finding", weights: Tensor, value: Tensor) -> Tensor:
        """Softmax outputs (..., N, M), in float, times quantized values (..., M, e); ``finding`` sees all of it."""
        quantized = self.products.v(value)
        finding(self, weights, value, quantized)
        product: Tensor = weights @ quantized
        return product

    def find_widest(self, weights: Tensor, _value: Tensor, _quantized: Tensor) -> None:
        """Take the largest outputs into account."""
        rows, _ = self._quantizer.relative(weights)
        widest = by_group(rows, self._shape).amax(dim=1).reshape(self._shape)
        self._widest = torch.maximum(self._widest.to(widest.device), widest)

    def add_errors(self, weights: Tensor, value: Tensor, quantized: Tensor) -> None:
        """Take the errors of all steps into account."""
        grid, (rows, largest) = self._quantizer.grid, self._quantizer.relative(weights)
        wanted = weights @ value
        for fraction in _FRACTIONS:
            step = self._step(fraction)
            product = (grid.points(grid.nearest(rows / step)) * step) @ quantized
            errors = ((product if largest is None else product * largest) - wanted).square().sum(dim=-1, keepdim=True)
            error = by_group(errors, self._shape).sum(dim=1).reshape(self._shape)
            self._errors[fraction] = self._errors.get(fraction, 0.0) + error

    def settle(self) -> None:
        """Set the steps with the least errors."""
        best, least = self._quantizer.step, torch.full_like(self._widest, torch.inf)
        for fraction, error in self._errors.items():
            best, least = torch.where(error < least, self._step(fraction), best), torch.minimum(error, least)
        with torch.no_grad():
            self._quantizer.step.copy_(best)

    def _step(self, fraction: float) -> Tensor:
        grid = self._quantizer.grid
        highest = grid.points(torch.full_like(self._widest, grid.range.high))
        return (self._widest / highest * fraction).clamp(min=SMALLEST_STEP)


_Finding = Callable[[_Search, Tensor, Tensor, Tensor], None]
