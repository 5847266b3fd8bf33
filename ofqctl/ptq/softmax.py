"""Steps of softmax outputs, chosen by the error of what they are multiplied for: their product with the value.

Most softmax outputs are far below a step. Rounding them to 0 costs little squared error each, but takes weight from the
mean value that all rows share, which adds up in the product; a finer step that clips the largest outputs costs less.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ofqctl.hooks import attached
from ofqctl.layers.attention import AttentionProducts
from ofqctl.ptq.task import Task
from ofqctl.quantizers import Quantizer
from ofqctl.quantizers.base import by_group
from ofqctl.quantizers.cores import MIN_STEP
from ofqctl.quantizers.fake_quantize import fake_quantize
from ofqctl.recipe.refining import SoftmaxStep

_FRACTIONS = tuple(2.0**-k for k in torch.arange(0.0, 6.5, 0.5).tolist())  # of the step that clips nothing


def fit_softmax_steps(task: Task, step: SoftmaxStep) -> None:  # noqa: ARG001
    """Try steps for the softmax output of every attention block at once; it stays in float for what comes behind.

    Goes through the calibration images twice, for the largest outputs and for the errors; all else in the model is
    quantized already.
    """
    searches = []
    for _, module in task.model.named_modules():
        if isinstance(module, AttentionProducts) and isinstance(module.softmax, Quantizer):
            searches.append((module, _Search(module.softmax)))
    total = 2 * task.images.images
    done = 0
    for finding in (_Search.find_widest, _Search.add_errors):
        hooks = (hook for products, search in searches for hook in search.watch(products, finding))
        with attached(hooks), torch.no_grad():
            for batch in task.images:
                task.progress("fit softmax steps", done, total)
                task.model(batch)
                done += len(batch)
    task.progress("fit softmax steps", total, total)
    for _, search in searches:
        search.settle()


class _Search:
    """The step of one quantizer whose error in the product is least over all batches."""

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self._shape = quantizer.plan.step_shape
        self._weights: Tensor | None = None
        self._widest = torch.zeros(self._shape)
        self._errors: dict[float, Tensor] = {}

    def watch(self, products: AttentionProducts, finding: Callable[..., None]) -> Iterator[RemovableHandle]:
        """Call ``finding`` with the value, (..., M, e), before and after its quantizer, in every pass."""
        yield products.softmax.register_forward_hook(self._hold)
        yield products.v.register_forward_hook(lambda _m, args, output: finding(self, args[0], output))

    def _hold(self, _module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        """Take the softmax output, (..., N, M), and pass it on in float."""
        self._weights = args[0]
        return args[0]

    def find_widest(self, _exact: Tensor, _quantized: Tensor) -> None:
        """Take the largest outputs into account."""
        assert self._weights is not None
        widest = by_group(self._weights, self._shape).amax(dim=1).reshape(self._shape)
        self._widest = torch.maximum(self._widest.to(widest.device), widest)

    def add_errors(self, exact: Tensor, quantized: Tensor) -> None:
        """Take the errors of all steps into account."""
        weights, quantizer = self._weights, self._quantizer
        assert weights is not None
        wanted = weights @ exact
        for fraction in _FRACTIONS:
            product = fake_quantize(weights, self._step(fraction), quantizer.offset, quantizer.grid) @ quantized
            errors = (product - wanted).square().sum(dim=-1, keepdim=True)
            error = by_group(errors, self._shape).sum(dim=1).reshape(self._shape)
            self._errors[fraction] = self._errors.get(fraction, 0.0) + error
        self._weights = None

    def settle(self) -> None:
        """Set the steps with the least errors."""
        best, least = self._quantizer.step, torch.full_like(self._widest, torch.inf)
        for fraction, error in self._errors.items():
            best, least = torch.where(error < least, self._step(fraction), best), torch.minimum(error, least)
        with torch.no_grad():
            self._quantizer.step.copy_(best)

    def _step(self, fraction: float) -> Tensor:
        return (self._widest / self._quantizer.grid.high * fraction).clamp(min=MIN_STEP)
