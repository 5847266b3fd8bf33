"""Query-key reparameterization (OFQ): the product of the two projections is quantized instead of the projections."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.layers.attention.products import AttentionProducts
from ofqctl.layers.weight import WeightSite
from ofqctl.quantizers import build_quantizer, computed_again
from ofqctl.recipe import ModulePlan


class FusedQKV(Protocol):
    """The attributes that a timm attention class must have for its query and key to be merged."""

    qkv: nn.Linear
    num_heads: int
    scale: float


class InputForEachHead(nn.Module):
    """Replaces the ``qkv`` projection and passes the block's input on, as query, key and value.

    timm splits the result into heads and passes it to the products, which reassemble the input from the heads.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(*tokens, C) -> (*tokens, 3, C), a view."""
        return x.unsqueeze(-2).expand(*x.shape[:-1], 3, -1)


class MergedQueryKey(WeightSite):
    """The weight ``W_qk[h] = Wq[h]^T Wk[h]``, (H, C, C); its latent weights are those of the two projections.

    Single entries of the product cannot be set through the projections, which all entries share. To hold entries, a
    ``correction`` is added to the product, (H, C, C), which undoes the changes by the projections. It gets no gradient;
    it is None, and absent from state dicts, until an entry is held.
    """

    latent_names = ("q", "k", "correction")
    q: nn.Parameter | None
    k: nn.Parameter | None
    correction: Tensor | None
    merged: Tensor | None

    def __init__(self, query: Tensor, key: Tensor, heads: int, plan: ModulePlan) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Parameter(query)
        self.k = nn.Parameter(key)
        self.register_buffer("correction", None)
        self.register_buffer("merged", None, persistent=False)
        self.weight_quantizer = None if plan.weight is None else build_quantizer(plan.weight)

    def latent(self) -> Tensor:
        """The product, (H, C, C), float32 even under autocast, because codes must not depend on autocast."""
        if self.q is None or self.k is None:
            assert self.merged is not None
            return self.merged
        query, key = _in_heads(self.q, self.heads), _in_heads(self.k, self.heads)
        with torch.autocast(query.device.type, enabled=False):
            product = query.transpose(-2, -1) @ key
        return product if self.correction is None else product + self.correction

    def hold(self, entries: Tensor, value: Tensor) -> None:
        """Correct the product so that it equals ``value`` at ``entries``, up to float32 rounding; both (H, C, C)."""
        with torch.no_grad():
            latent = self.latent()
            if self.correction is None:
                self.correction = torch.zeros_like(latent)
            self.correction.add_(torch.where(entries, value - latent, 0.0))

    def install_value(self, value: Tensor) -> None:
        """Store the product itself, (H, C, C), and drop the two projections."""
        self.merged = value
        self.q = self.k = self.correction = None

    def install_latent(self, value: Tensor) -> None:
        """Set the projections to the best approximation of ``value``, (H, C, C), and the correction to the rest."""
        width = value.shape[-1] // self.heads
        left, sizes, right = torch.linalg.svd(value.float())
        root = sizes[:, :width, None].sqrt()
        self.q = nn.Parameter((left.transpose(-2, -1)[:, :width] * root).flatten(0, 1).to(value.dtype))
        self.k = nn.Parameter((right[:, :width] * root).flatten(0, 1).to(value.dtype))
        self.merged = None
        self.hold(torch.ones_like(value, dtype=torch.bool), value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Create or drop ``correction`` so that it matches the loaded state."""
        if f"{prefix}q" in state_dict:
            given = state_dict.get(f"{prefix}correction")
            self.correction = None if given is None or self.q is None else torch.zeros_like(given, device=self.q.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _in_heads(rows: Tensor, heads: int) -> Tensor:
    """(H * d, ...) -> (H, d, ...)."""
    return rows.reshape(heads, -1, *rows.shape[1:])


class QKRProducts(AttentionProducts):
    """Attention whose logits are ``x_q W_qk x_q^T * scale``; ``x`` is quantized once and shared with the value.

    A query bias adds ``bq^T Wk x_j`` to the logits of key j, which is kept exactly; the terms of a key bias are
    constant over the keys and vanish in the softmax.

    Args:
        attention: The float attention block, its ``qkv`` still in place.
        plan: Quantizer of the merged weight; of the operands ``x``, ``qkx``, ``softmax`` and ``v``.
    """

    x: nn.Module
    qkx: nn.Module

    def __init__(self, attention: FusedQKV, plan: ModulePlan) -> None:
        super().__init__({name: p for name, p in plan.operands.items() if name in ("softmax", "v")})
        for name in ("x", "qkx"):
            operand = plan.operands.get(name)
            self.add_module(name, nn.Identity() if operand is None else build_quantizer(operand))
        self.heads, self.scale = attention.num_heads, attention.scale
        query, key, value = attention.qkv.weight.detach().chunk(3)
        self.qk = MergedQueryKey(query.clone(), key.clone(), self.heads, plan)
        self.v_proj = nn.Linear(value.shape[1], value.shape[0], bias=attention.qkv.bias is not None)
        self.v_proj.weight = nn.Parameter(value.clone())
        self.key_term: nn.Parameter | None = None
        if attention.qkv.bias is not None:
            query_bias, _, value_bias = attention.qkv.bias.detach().chunk(3)
            self.v_proj.bias = nn.Parameter(value_bias.clone())
            if plan.query_bias:
                per_head = _in_heads(key, self.heads), _in_heads(query_bias, self.heads)
                self.key_term = nn.Parameter(torch.einsum("hdc,hd->hc", *per_head))

    def no_weight_decay(self) -> set[str]:
        """The term of the query bias gets no weight decay, like any bias."""
        return {"key_term"}

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
        """Like the overridden method, but query, key and value are all the block's input in heads, (B, H, N, C / H)."""
        del query, key, scale, enable_gqa
        x = self.x(value.transpose(1, 2).flatten(2))
        with computed_again(x):
            weighted = F.linear(x, self.qk.quantized_weight().flatten(0, 1))
            value = self._in_heads(self.v_proj(x))
            logits = self._logits(x, self.qkx(self._in_heads(weighted)))
        return self.mix(logits, value, attn_mask, dropout_p, is_causal)

    def _in_heads(self, x: Tensor) -> Tensor:
        """(B, N, H * d) -> (B, H, N, d)."""
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)

    def _logits(self, x: Tensor, weighted: Tensor) -> Tensor:
        """(B, N, C) and (B, H, N, C) -> (B, H, N, N), transposed in memory: one product with all heads as its rows."""
        with computed_again(x, weighted):
            logits = weighted.flatten(1, 2) @ x.transpose(1, 2)
            if self.key_term is not None:
                logits += F.linear(x, self.key_term).transpose(1, 2).reshape(*logits.shape[:2], 1)
        return logits.mul_(self.scale).view(*weighted.shape[:3], -1).transpose(-2, -1)
