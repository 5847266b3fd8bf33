"""Estimates of sensitivities by the terms of a Taylor expansion, from gradients alone.

Mixed-precision inference quantization (arXiv 2207.10083) takes the first-order change of the loss, the product of its
gradient with the noise of a quantizer; the second-order term has the diagonal of the Fisher information in place of the
Hessian. Both are computed for all quantizers in one pass over the images.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.models.outputs import check_output
from ofqctl.ptq.divergence import Measure, measure_of, own_loss
from ofqctl.ptq.switching import Quantized, Quantizers
from ofqctl.ptq.units import Batches
from ofqctl.quantizers import Quantizer

Told = Callable[[int, int], None]  # takes how much of the work is done, and all of it


class _Products:
    """Products of gradients and noise, of one image, by module.

    Attributes:
        sums: Sum over the elements of gradient times noise.
        squares: Sum over the elements of the square of that.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.squares: dict[str, float] = {}

    def add(self, name: str, gradient: Tensor, noise: Tensor) -> None:
        """Add those of one quantizer of a module."""
        product = gradient * noise
        self.sums[name] = self.sums.get(name, 0.0) + float(product.sum())
        self.squares[name] = self.squares.get(name, 0.0) + float(product.square().sum())

    def taken(self) -> "_Products":
        """What was added so far; the next ones start from nothing."""
        taken = _Products()
        taken.sums, taken.squares, self.sums, self.squares = self.sums, self.squares, {}, {}
        return taken


class _Probe(nn.Module):
    """In place of a quantizer: passes its input on, and multiplies the gradient by the noise of the quantizer."""

    def __init__(self, name: str, quantizer: Quantizer, products: _Products) -> None:
        super().__init__()
        self._name, self._quantizer, self._products = name, quantizer, products

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            noise = self._quantizer(x) - x
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        x.register_hook(lambda gradient: self._products.add(self._name, gradient, noise))  # type: ignore[no-untyped-call]
        return x


def estimates(
    model: nn.Module,
    quantizers: Quantizers,
    parts: Sequence[Quantized],
    images: Batches,
    told: Told,
    *,
    first_order: bool,
) -> dict[str, float]:
    """The change of a loss when one module is quantized, to the second order, by module.

    The second-order term is ``mean(sum((g * noise) ** 2)) / 2`` over images, where ``g`` is the gradient of the
    cross-entropy with a class that is drawn from the float model's own predictions (of embeddings, see `own_loss`): an
    estimate of the divergence from the float predictions that neglects what elements of the noise do together. The
    first-order term is ``mean(sum(g * noise))`` for the class that the float model predicts. It counts where it has the
    same sign in the even and in the odd images, and is 0 elsewhere.

    Args:
        model: The converted and calibrated model, in evaluation mode; its parameters' gradients are cleared.
        quantizers: Its quantizers.
        parts: What of a module is quantized.
        images: Normalized images, (B, 3, H, W) each.
        told: Called before every image and at the end.
        first_order: Whether the first-order term is added, which may make the change negative.

    Source: arXiv 2207.10083, section 3; the Fisher information in BRECQ, arXiv 2102.05426.
    """
    measure, generator = measure_of(model), torch.Generator().manual_seed(0)
    names, products, done = quantizers.names(*parts), _Products(), 0
    first: dict[str, list[float]] = {name: [] for name in names}
    second: dict[str, list[float]] = {name: [] for name in names}

    def probed(name: str, quantizer: Quantizer, part: Quantized) -> nn.Module:
        return _Probe(name, quantizer, products) if part in parts else nn.Identity()

    with quantizers.replaced(probed):
        for batch in images:
            for image in torch.split(batch, 1):
                told(done, images.images)
                output = check_output(model(image), image)
                loss = _scale(output, measure) * own_loss(output, measure, generator)
                loss.backward(retain_graph=first_order)  # type: ignore[no-untyped-call]
                drawn = products.taken()
                for name in names:
                    second[name].append(drawn.squares.get(name, 0.0) / 2)
                if first_order:
                    F.cross_entropy(output, output.argmax(dim=1)).backward()  # type: ignore[no-untyped-call]
                    predicted = products.taken()
                    for name in names:
                        first[name].append(predicted.sums.get(name, 0.0))
                done += 1
    told(done, done)
    model.zero_grad()
    return {name: _agreed(first[name]) + sum(second[name]) / done for name in names}


def _scale(output: Tensor, measure: Measure) -> float:
    """What the loss is multiplied by, so that half of its squared gradient is the curvature of the divergence."""
    return 1.0 if measure == "kl" else float((2.0 / output.detach().float().square().sum().clamp(min=1e-12)).sqrt())


def _agreed(changes: Sequence[float]) -> float:
    """Their mean, if that of the even ones and that of the odd ones have one sign; 0 otherwise."""
    even, odd = sum(changes[::2]), sum(changes[1::2])
    return (even + odd) / len(changes) if even * odd > 0 else 0.0
