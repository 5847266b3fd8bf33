"""StatQuant: gradients of few bits, rounded at random (Chen et al., NeurIPS 2020, arXiv 2010.14298).

In the backward pass of every quantized Linear layer the gradient of its output is itself rounded to 4 to 8 bits, so
that all three products of training are products of few bits. Rounding is stochastic and therefore right on average:
training gets noisier, not biased. It shows what training in low precision would cost in accuracy; the arithmetic here
stays in float, so a step does not get faster.

With ``b`` bits there are ``B = 2**b - 1`` bins. ``tensor``: all values of a gradient share their range, ``S = B /
range`` (the paper's PTQ). ``rows``: each row has a range of its own (PSQ). ``householder``: before that, a few rows of
large range are spread over groups of rows of small range by Householder reflections (block Householder quantizer, BHQ),
so that no range is large. In a group of ``m`` rows of ranges ``r_1 >= r_2 >= ...``, ``H`` takes the first unit vector
to ``ones / sqrt(m)``; rows are scaled by ``w**(-1/3)``, with ``w = r_1 / sqrt(m)`` for the first and ``w = r_2 * max|H|
/ (m - 1)`` for the others, multiplied by ``H``, rounded row by row, and transformed back. The number of groups is the
largest ``k`` with ``(N - k) * r_k >= r_1 + ... + r_k``; each gets a part of the other rows in proportion to its range.

There are two copies of each gradient: one of ``bits`` that goes on to the input, and one of ``weight_bits`` for weight
and bias, which with ``rows`` and ``householder`` has a range a column, as the product sums over rows.

A row is a ``sample``, as published, or a ``token``, which is finer and as free in the product. Rows of tokens are
transformed within their sample, because a reflection of all tokens of a batch would mix images.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from ofqctl.errors import RecipeError
from ofqctl.layers import QuantLinear
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.remedy import Remedy, RemedySettings

_SMALLEST_RANGE = torch.finfo(torch.float32).tiny


class StatQuant(RemedySettings):
    """Stochastic low-bit gradients.

    Attributes:
        bits: Width of the gradients that go on to the inputs, 2-8.
        weight_bits: Width of the gradients that weights and biases get, 2-8.
        quantizer: What shares a range: the whole ``tensor``, ``rows``, or rows after a ``householder`` transform.
        rows: What a row is, a ``sample`` or a ``token``.
    """

    bits: int = Field(default=8, ge=2, le=8)
    weight_bits: int = Field(default=8, ge=2, le=8)
    quantizer: Literal["tensor", "rows", "householder"] = "householder"
    rows: Literal["sample", "token"] = "token"


@REMEDIES.register("statquant", StatQuant, traits=["float32"])
class StochasticGradients(Remedy):
    """Replaces the product of every quantized Linear layer by one whose backward pass rounds its gradient.

    Args:
        model: The quantized and calibrated model.
        settings: Widths and ranges.
        steps: Number of optimizer steps in the phase; not used.
    """

    def __init__(self, model: nn.Module, settings: StatQuant, steps: int) -> None:  # noqa: ARG002
        self._layers = _layers(model)

        def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            result: Tensor = _Product.apply(x, weight, bias, settings)
            return result

        for layer in self._layers:
            layer.product = product

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:  # noqa: ARG003
        """Check that ``model`` has quantized Linear layers.

        Raises:
            RecipeError: It has none.
        """
        if not _layers(model):
            raise RecipeError("statquant: rounds the gradients of quantized Linear layers, and this model has none")

    def close(self) -> None:
        """Give the layers their own product back."""
        for layer in self._layers:
            del layer.product


def _layers(model: nn.Module) -> list[QuantLinear]:
    return [module for module in model.modules() if isinstance(module, QuantLinear)]


class _Product(Function):
    """``F.linear`` with a rounded gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: StatQuant) -> Tensor:
        ctx.settings = settings
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        settings: StatQuant = ctx.settings
        grad = grads[0].float()
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = None
        if of_x:
            grad_x = (rounded_gradient(grad, settings) @ weight.float()).to(x.dtype)
        if of_weight or of_bias:
            columns = grad.flatten(0, -2).T
            whole = columns.reshape(1, -1) if settings.quantizer == "tensor" else columns
            columns = stochastic_rows(whole, settings.weight_bits).view_as(columns)
            grad_weight = (columns @ x.float().flatten(0, -2)).to(weight.dtype) if of_weight else None
            grad_bias = columns.sum(dim=1) if of_bias else None
        return grad_x, grad_weight, grad_bias, None


def rounded_gradient(grad: Tensor, settings: StatQuant) -> Tensor:
    """A gradient rounded at random; its expectation is the gradient.

    Args:
        grad: Gradient of a layer's output, (B, ..., C), float32.
        settings: Width (``bits``), and what shares a range.

    Returns:
        The rounded gradient, in the same shape.
    """
    if settings.quantizer == "tensor":
        return stochastic_rows(grad.reshape(1, -1), settings.bits).view_as(grad)
    by_token = settings.rows == "token"
    if settings.quantizer == "rows":
        rows = grad.flatten(0, -2) if by_token else grad.flatten(1)
        return stochastic_rows(rows, settings.bits).view_as(grad)
    together = grad.reshape(len(grad), -1, grad.shape[-1]) if by_token else grad.reshape(1, len(grad), -1)
    return householder_rows(together, settings.bits).view_as(grad)


def stochastic_rows(rows: Tensor, bits: int) -> Tensor:
    """Round each row (the last dimension) at random to ``2**bits`` evenly spaced values over its own range."""
    low, high = rows.amin(dim=-1, keepdim=True), rows.amax(dim=-1, keepdim=True)
    bins = (1 << bits) - 1
    step = ((high - low) / bins).clamp(min=_SMALLEST_RANGE)
    codes = ((rows - low) / step).add_(torch.rand_like(rows)).floor_().clamp_(0, bins)
    return codes.mul_(step).add_(low)


def householder_rows(rows: Tensor, bits: int) -> Tensor:
    """Round rows at random after a block Householder transform.

    Args:
        rows: (sets, rows, elements); only rows of one set are mixed.
        bits: Width of a code.

    Returns:
        The rounded rows, in the same shape.
    """
    reflect, scale = _transform(rows.amax(dim=-1) - rows.amin(dim=-1))
    return reflect(stochastic_rows(reflect(rows * scale), bits)) / scale


def _transform(ranges: Tensor) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """The reflection of each group of rows, which is its own inverse, and the scales of rows ahead of it.

    Args:
        ranges: Range of each row, (sets, rows).

    Returns:
        A function of rows, (sets, rows, elements), and (sets, rows, 1).
    """
    sets, count = ranges.shape
    ordered, order = ranges.clamp(min=_SMALLEST_RANGE).sort(dim=1, descending=True, stable=True)
    place = torch.arange(count, device=ranges.device).expand(sets, -1)
    total = ordered.cumsum(dim=1)
    groups = (((count - 1 - place) * ordered >= total) * (place + 1)).amax(dim=1, keepdim=True).clamp(min=1)
    share = total / total.gather(1, groups - 1)  # of the small rows, of the groups so far
    ends = (share * (count - groups)).round().masked_fill(place >= groups, torch.inf)
    small = (place - groups).clamp(min=0).to(ends.dtype)
    group = torch.where(place < groups, place, torch.searchsorted(ends, small, right=True).minimum(groups - 1))
    ones = torch.ones_like(ordered)
    size = torch.zeros_like(ordered).scatter_add_(1, group, ones).gather(1, group)
    largest_small = torch.zeros_like(ordered).scatter_reduce_(
        1, group, ordered.where(place >= groups, torch.zeros_like(ordered)), "amax"
    )
    second = largest_small.gather(1, group).clamp(min=_SMALLEST_RANGE)
    root = size.sqrt()
    # the largest magnitude in the columns of H but the first; a group of one row stays as it is
    inner = 1.0 / (size - root).clamp(min=0.5)
    of_small = second * torch.maximum(1.0 / root, (1.0 - inner).abs()) / (size - 1.0).clamp(min=1.0)
    weight = torch.where(place < groups, ordered / root, of_small)
    scale = torch.where(size > 1, weight.clamp(min=_SMALLEST_RANGE) ** (-1 / 3), ones)
    normal = torch.where(place < groups, 1.0 / root - 1.0, 1.0 / root)
    factor = torch.where(size > 1, 1.0 / (1.0 - 1.0 / root).clamp(min=0.1), torch.zeros_like(root))  # 2 / |normal|^2

    back = order.argsort(dim=1)  # where each row stands among the ordered ones
    group, normal, factor, scale = (each.gather(1, back) for each in (group, normal, factor, scale))
    flat = (group + count * torch.arange(sets, device=ranges.device)[:, None]).flatten()
    normal, factor = normal.flatten()[:, None], factor.flatten()[:, None]

    def reflect(rows: Tensor) -> Tensor:
        whole = rows.reshape(sets * count, -1)
        along = torch.zeros_like(whole).index_add_(0, flat, normal * whole)
        reflected: Tensor = whole - factor * normal * along[flat]
        return reflected.view_as(rows)

    return reflect, scale.unsqueeze(-1)
