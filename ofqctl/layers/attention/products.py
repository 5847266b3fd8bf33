"""The two matrix products of attention, on quantized operands."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ofqctl.layers.attention.forms import Role
from ofqctl.quantizers import build_quantizer, computed_again
from ofqctl.recipe import QuantizerPlan

MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class AttentionProducts(nn.Module):
    """``softmax(q k^T * scale + bias) v`` with quantized query, key, softmax output and value.

    Args:
        operands: Quantizers of ``q``, ``k``, ``softmax`` and ``v``; a missing one stays float.
    """

    q: nn.Module
    k: nn.Module
    softmax: nn.Module
    v: nn.Module

    def __init__(self, operands: Mapping[str, QuantizerPlan]) -> None:
        super().__init__()
        for name in ("q", "k", "softmax", "v"):
            plan = operands.get(name)
            self.add_module(name, nn.Identity() if plan is None else build_quantizer(plan))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute attention, with the signature and meaning of ``F.scaled_dot_product_attention``.

        Args:
            query: Queries, (..., N, d).
            key: Keys, (..., M, d).
            value: Values, (..., M, e).
            attn_mask: Added to the logits, or True where attention is allowed; broadcasts to (..., N, M).
            dropout_p: Probability of dropping a softmax output.
            is_causal: Whether query i sees keys 0..i only.
            scale: Factor of the logits, ``d ** -0.5`` by default.
            enable_gqa: Whether several query heads share a key and value head.

        Returns:
            (..., N, e).
        """
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = (t.repeat_interleave(groups, dim=-3) for t in (key, value))
        logits = self.multiply_query_key(query, key.transpose(-2, -1))
        logits = logits.mul_(query.shape[-1] ** -0.5 if scale is None else scale)
        return self.mix(logits, value, attn_mask, dropout_p, is_causal)

    def mix(self, logits: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool) -> Tensor:
        """Softmax of masked ``logits`` (..., N, M) times ``value`` (..., M, e)."""
        if is_causal:
            allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
            logits = logits.masked_fill(~allowed, float("-inf"))
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            logits = logits + attn_mask
        weights = _softmax(logits)
        if dropout_p > 0.0:
            weights = F.dropout(weights, dropout_p)
        return self.multiply_softmax_value(weights, value)

    def multiply_query_key(self, query: Tensor, transposed_key: Tensor) -> Tensor:
        """``query @ transposed_key``, (..., N, d) and (..., d, M), on their codes."""
        query, key = self.q(query), self.k(transposed_key.transpose(-2, -1))
        with computed_again(query, key):
            logits: Tensor = query @ key.transpose(-2, -1)
        return logits

    def multiply_softmax_value(self, weights: Tensor, value: Tensor) -> Tensor:
        """``weights @ value``, (..., N, M) and (..., M, e), on their codes."""
        weights, value = self.softmax(weights), self.v(value)
        with computed_again(weights, value):
            product: Tensor = weights @ value
        return product

    def multiply_value_softmax(self, value: Tensor, weights: Tensor) -> Tensor:
        """``value @ weights``, (..., e, M) and (..., M, N): the same product transposed; contiguous."""
        product = self.multiply_softmax_value(weights.transpose(-2, -1), value.transpose(-2, -1))
        return product.transpose(-2, -1).contiguous()


def _softmax(logits: Tensor) -> Tensor:
    """Softmax over the last dimension; logits that are transposed in memory are not copied, nor is the result."""
    if logits.transpose(-2, -1).is_contiguous():
        return logits.transpose(-2, -1).softmax(dim=-2).transpose(-2, -1)
    return logits.softmax(dim=-1)


class Redirected(TorchFunctionMode):
    """While active, redirects the products in timm's own attention code to ``products``.

    These are calls of ``scaled_dot_product_attention``, or matrix products with the given roles, which repeat.
    """

    def __init__(self, products: AttentionProducts, roles: Sequence[Role]) -> None:
        super().__init__()
        self._attend = products.attend
        by_role: dict[Role, Callable[..., Any]] = {
            "query_key": products.multiply_query_key,
            "softmax_value": products.multiply_softmax_value,
            "value_softmax": products.multiply_value_softmax,
            "float": torch.matmul,
        }
        self._multiply = cycle([by_role[role] for role in roles] or [torch.matmul])

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, or the product that replaces it."""
        if func is F.scaled_dot_product_attention:
            func = self._attend
        elif func in MATMULS:
            func = next(self._multiply)
        return func(*args, **(kwargs or {}))


class QuantAttention(nn.Module):
    """Mix-in that runs a timm attention class unchanged, except for its two products.

    Attributes:
        products: Module that computes the products.
        roles: Roles of the matrix products in timm's code; empty if that calls ``scaled_dot_product_attention``.
    """

    products: AttentionProducts
    roles: tuple[Role, ...]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run timm's own forward."""
        with Redirected(self.products, self.roles):
            return super().forward(*args, **kwargs)
