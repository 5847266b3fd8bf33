"""Attention with quantized products: which timm classes (forms), how (products), and merged query-key (qkr)."""

from collections.abc import Hashable
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from ofqctl.layers.attention.forms import AttentionForm, attention_form, form_of, why_no_form, why_no_qkr
from ofqctl.layers.attention.products import AttentionProducts, QuantAttention, Redirected
from ofqctl.layers.attention.qkr import FusedQKV, InputForEachHead, MergedQueryKey, QKRProducts
from ofqctl.recipe import ModulePlan


@cache
def _quantized_class(cls: Hashable) -> type[nn.Module]:
    assert isinstance(cls, type)
    return type(f"Quant{cls.__name__}", (QuantAttention, cls), {"__module__": cls.__module__})


def quantize_attention(attention: Any, plan: ModulePlan) -> None:
    """Give a timm attention block quantized products, in place.

    The block's class stays its base class, so that everything timm does with it keeps working.

    Args:
        attention: A block of a registered class.
        plan: Plan of the block, of kind ``attention`` or ``qkr``.
    """
    form = form_of(attention)
    assert form is not None, f"{type(attention).__name__} has no registered form"
    open_products(attention)
    if plan.kind == "qkr":
        with torch.inference_mode(False):  # the parts of the projection become separate parameters
            attention.products = QKRProducts(cast("FusedQKV", attention), plan)
        attention.qkv = InputForEachHead()
    else:
        attention.products = AttentionProducts(plan.operands)
    attention.roles = form.roles_in(attention)
    attention.__class__ = _quantized_class(cast(Hashable, type(attention)))


def open_products(attention: Any) -> None:
    """Make a block of a registered class call its products and projections in a way that can be intercepted.

    It computes the same function: this only chooses between equivalent code paths of timm.
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
    "attention_form",
    "form_of",
    "open_products",
    "quantize_attention",
    "why_no_form",
    "why_no_qkr",
]
