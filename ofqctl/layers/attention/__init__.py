"""Attention with quantized products: which timm classes (forms), how (products), and merged query-key (qkr)."""

from functools import cache
from typing import cast

from torch import nn

from ofqctl.layers.attention.forms import AttentionForm, form_of, looks_like_attention, why_no_qkr
from ofqctl.layers.attention.products import AttentionProducts, QuantAttention, Redirected
from ofqctl.layers.attention.qkr import FusedQKV, InputForEachHead, MergedQueryKey, QKRProducts
from ofqctl.recipe import ModulePlan


@cache
def _quantized_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Quant{cls.__name__}", (QuantAttention, cls), {"__module__": cls.__module__})


def quantize_attention(attention: nn.Module, plan: ModulePlan) -> None:
    """Give a timm attention block quantized products, in place.

    The block keeps its class as a base, so that everything timm does with it goes on working.

    Args:
        attention: A block of a registered class.
        plan: Of kind ``attention`` or ``qkr``.
    """
    form = form_of(attention)
    assert form is not None, f"{type(attention).__name__} has no registered form"
    open_products(attention)
    if plan.kind == "qkr":
        attention.products = QKRProducts(cast(FusedQKV, attention), plan)
        attention.qkv = InputForEachHead()
    else:
        attention.products = AttentionProducts(plan.operands)
    attention.fused = form.fused
    attention.__class__ = _quantized_class(type(attention))


def open_products(attention: nn.Module) -> None:
    """Make a block of a registered class call its products, and its projections, where they can be reached.

    Keeps its function: only which of timm's equivalent code paths runs is chosen.
    """
    form = form_of(attention)
    if form is not None and form.fused and hasattr(attention, "fused_attn"):
        attention.fused_attn = True
    if hasattr(attention, "qkv_bias_separate"):
        attention.qkv_bias_separate = True


__all__ = [
    "AttentionForm",
    "AttentionProducts",
    "InputForEachHead",
    "MergedQueryKey",
    "QKRProducts",
    "QuantAttention",
    "Redirected",
    "form_of",
    "looks_like_attention",
    "open_products",
    "quantize_attention",
    "why_no_qkr",
]
