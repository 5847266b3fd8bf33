"""The attention classes of timm whose products can be quantized, and what each allows.

A class that is not listed keeps its matrix products in float; its Linear and Conv2d layers are quantized all the same.
"""

import importlib
from dataclasses import dataclass
from functools import cache

from torch import nn

NO_FORM = "this attention class has no registered form"


@dataclass(frozen=True)
class AttentionForm:
    """How the products of one timm class are reached.

    Attributes:
        fused: Its code calls ``scaled_dot_product_attention``; otherwise its first two matrix products are those of
            query and key, and of softmax output and value.
        no_qkr: Why query and key cannot be merged, or None if they can.
    """

    fused: bool
    no_qkr: str | None = "query and key are not the two halves of one plain projection"


_FUSED = AttentionForm(fused=True)
_EXPLICIT = AttentionForm(fused=False)
_PLAIN = AttentionForm(fused=True, no_qkr=None)
_ROTARY = AttentionForm(fused=True, no_qkr="a rotary embedding stands between the projections and their product")
_COSINE = AttentionForm(fused=False, no_qkr="query and key are normalized before their product (cosine attention)")
_BIASED = AttentionForm(fused=True, no_qkr="query and value biases are kept apart from the projection")

FORMS: dict[str, AttentionForm] = {
    "layers.attention.Attention": _PLAIN,
    "layers.attention.AttentionRope": _ROTARY,
    "layers.attention2d.Attention2d": _FUSED,
    "layers.attention2d.MultiQueryAttention2d": _FUSED,
    "layers.attention_pool.AttentionPoolLatent": _FUSED,
    "layers.attention_pool2d.AttentionPool2d": _FUSED,
    "layers.attention_pool2d.RotAttentionPool2d": _ROTARY,
    "models.beit.Attention": _BIASED,
    "models.cait.ClassAttn": _FUSED,
    "models.cpubone.ConvAttention": _FUSED,
    "models.crossvit.CrossAttention": _EXPLICIT,
    "models.davit.WindowAttention": _FUSED,
    "models.edgenext.CrossCovarianceAttn": _COSINE,
    "models.efficientformer.Attention": _EXPLICIT,
    "models.eva.EvaAttention": _ROTARY,
    "models.fastvit.Attention": _FUSED,
    "models.gcvit.WindowAttentionGlobal": _EXPLICIT,
    "models.hiera.MaskUnitAttention": _FUSED,
    "models.hieradet_sam2.MultiScaleAttention": _FUSED,
    "models.lowformer.ConvAttention": _FUSED,
    "models.maxxvit.Attention2d": _FUSED,
    "models.maxxvit.AttentionCl": _FUSED,
    "models.metaformer.Attention": _FUSED,
    "models.mvitv2.MultiScaleAttention": _EXPLICIT,
    "models.mvitv2.MultiScaleAttentionPoolFirst": _EXPLICIT,
    "models.nest.Attention": _FUSED,
    "models.nextvit.EfficientAttention": _FUSED,
    "models.pvt_v2.Attention": _FUSED,
    "models.swin_transformer.WindowAttention": _PLAIN,
    "models.swin_transformer_v2.WindowAttention": _COSINE,
    "models.swin_transformer_v2_cr.WindowMultiHeadAttention": _COSINE,
    "models.tiny_vit.Attention": _FUSED,
    "models.tnt.Attention": _EXPLICIT,
    "models.twins.GlobalSubSampleAttn": _FUSED,
    "models.twins.LocallyGroupedAttn": _FUSED,
    "models.vision_transformer.ParallelScalingBlock": _FUSED,
    "models.visformer.Attention": _FUSED,
    "models.vision_transformer_relpos.RelPosAttention": _FUSED,
    "models.vision_transformer_sam.Attention": _FUSED,
    "models.volo.ClassAttention": _EXPLICIT,
    "models.volo.Attention": _FUSED,
    "models.xcit.ClassAttention": _FUSED,
}


@cache
def _by_class() -> dict[type[nn.Module], AttentionForm]:
    """The registered classes that the installed timm has."""
    found = {}
    for path, form in FORMS.items():
        module, _, name = f"timm.{path}".rpartition(".")
        try:
            cls = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError:  # another release of timm
            continue
        if cls is not None:
            found[cls] = form
    return found


def form_of(module: nn.Module) -> AttentionForm | None:
    """The form registered for exactly the class of ``module``, or None."""
    return _by_class().get(type(module))


def why_no_qkr(module: nn.Module) -> str | None:
    """Why query and key of an attention block cannot be merged, or None if they can."""
    form = form_of(module)
    if form is None:
        return NO_FORM
    if form.no_qkr is not None:
        return form.no_qkr
    if any(not isinstance(getattr(module, name, None), nn.Identity | None) for name in ("q_norm", "k_norm")):
        return "query and key are normalized before their product"
    qkv = module.qkv
    if not isinstance(qkv, nn.Linear) or qkv.out_features != 3 * qkv.in_features:
        return "the heads together are not as wide as the input"
    return None


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module holds attention's products itself, judged by its class name and registered or not."""
    name = type(module).__name__
    return form_of(module) is not None or name.endswith(("Attention", "Attn", "Attention2d", "AttentionCl"))
