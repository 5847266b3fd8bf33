"""Steps of softmax outputs, chosen by the error of what they are multiplied for: their product with the value.

Most softmax outputs are far below a step. Rounding them to 0 costs little squared error each, but takes weight from the
mean value that all rows share, which adds up in the product; a finer step that clips the largest outputs costs less.
"""

import torch
from torch import Tensor, nn

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

    Uses the first batch of the calibration images alone: all else in the model is quantized already.
    """
    searches = {
        name: _Search(module.softmax)
        for name, module in task.model.named_modules()
        if isinstance(module, AttentionProducts) and isinstance(module.softmax, Quantizer)
    }
    handles = []
    for name, search in searches.items():
        products = task.model.get_submodule(name)
        assert isinstance(products, AttentionProducts)
        handles.append(products.softmax.register_forward_hook(search.hold))
        handles.append(products.v.register_forward_hook(search.compare))
    task.progress("fit softmax steps", 0, None)
    try:
        with torch.no_grad():
            task.model(task.images[0])
    finally:
        for handle in handles:
            handle.remove()


class _Search:
    """The step of one quantizer whose error in the product is least, tried on one batch."""

    def __init__(self, quantizer: Quantizer) -> None:
        self._quantizer = quantizer
        self._weights: Tensor | None = None

    def hold(self, _module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> Tensor:
        """Take the softmax output, (..., N, M), and pass it on in float."""
        self._weights = args[0]
        return args[0]

    def compare(self, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        """Take the value, (..., M, e), before and after its quantizer, and set the best step."""
        weights, quantizer = self._weights, self._quantizer
        assert weights is not None
        shape = quantizer.plan.step_shape
        widest = by_group(weights, shape).amax(dim=1).reshape(shape) / quantizer.grid.high
        exact = weights @ args[0]
        best, least = quantizer.step, torch.full_like(widest, torch.inf)
        for fraction in _FRACTIONS:
            tried = (widest * fraction).clamp(min=MIN_STEP)
            product = fake_quantize(weights, tried, quantizer.offset, quantizer.grid) @ output
            errors = (product - exact).square().sum(dim=-1, keepdim=True)
            error = by_group(errors, shape).sum(dim=1).reshape(shape)
            best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
        quantizer.step.copy_(best)
        self._weights = None
