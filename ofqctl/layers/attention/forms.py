"""The attention classes of timm whose products can be quantized, and what each supports.

A class that is not listed keeps its matrix products in float; its Linear and Conv2d layers are still quantized.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

from torch import nn

from ofqctl.registry import load_plugins

NO_FORM = "this attention class has no registered form"

Role = Literal["query_key", "softmax_value", "value_softmax", "float"]
"""What a matrix product of an attention class computes: query times transposed key; softmax output times value; both
of these transposed and in the other order; or something that stays in float."""

_OPERANDS: dict[Role, tuple[str, ...]] = {
    "query_key": ("q", "k"),
    "softmax_value": ("softmax", "v"),
    "value_softmax": ("softmax", "v"),
    "float": (),
}


@dataclass(frozen=True)
class AttentionForm:
    """How the products of one timm class are intercepted.

    Attributes:
        roles: Roles of the matrix products in its code, in the order of the calls; they repeat for a class that
            multiplies head by head. Empty if its code calls ``scaled_dot_product_attention``.
        no_qkr: Why query and key cannot be merged, or None if they can.
        signed_weights: Whether the left factor of the value may be negative, as for softmax outputs mixed across the
            heads.
        value_first_if: Name of a flag of the module that says that the value is the left factor and the softmax output
            the right.
    """

    roles: tuple[Role, ...] = ()
    no_qkr: str | None = "query and key are not the two halves of one plain projection"
    signed_weights: bool = False
    value_first_if: str | None = None

    @property
    def fused(self) -> bool:
        """Whether its code calls ``scaled_dot_product_attention``."""
        return not self.roles

    @property
    def operands(self) -> set[str]:
        """Names of the operands of its products."""
        return {name for role in self.roles or ("query_key", "softmax_value") for name in _OPERANDS[role]}

    def roles_in(self, module: nn.Module) -> tuple[Role, ...]:
        """The roles for one ``module`` of the class, which depend on its flags."""
        if self.value_first_if is None or not getattr(module, self.value_first_if):
            return self.roles
        return tuple("value_softmax" if role == "softmax_value" else role for role in self.roles)


_POOLED_QUERY = "the query is pooled between its projection and its product"
_TWO: tuple[Role, ...] = ("query_key", "softmax_value")

_PLAIN = AttentionForm(no_qkr=None)
_FUSED = AttentionForm()
_ROTARY = AttentionForm(no_qkr="a rotary embedding stands between the projections and their product")
_BIASED = AttentionForm(no_qkr="query and value biases are kept apart from the projection")
_POOLED = AttentionForm(no_qkr=_POOLED_QUERY)
_BLOCKS = AttentionForm(no_qkr="tokens are multiplied in blocks of more than four dimensions")
_EXPLICIT = AttentionForm(_TWO)
_COSINE = AttentionForm(_TWO, no_qkr="query and key are normalized before their product (cosine attention)")
_CHANNELS = AttentionForm(_TWO, no_qkr="its softmax runs over channels, not tokens (cross-covariance)")
_TALKING = AttentionForm(_TWO, no_qkr="logits and softmax outputs are mixed across the heads", signed_weights=True)
_CONVOLVED = AttentionForm(("query_key", "value_softmax"))
_LEVIT = AttentionForm(_TWO, value_first_if="use_conv")
_RELATIVE = AttentionForm(("query_key", "float", "float", "softmax_value"))  # in between: logits of relative positions

FORMS: dict[str, AttentionForm] = {
    "layers.attention.Attention": _PLAIN,
    "layers.attention.AttentionRope": _ROTARY,
    "layers.attention2d.Attention2d": _FUSED,
    "layers.attention2d.MultiQueryAttention2d": _FUSED,
    "layers.attention_pool.AttentionPoolLatent": _FUSED,
    "layers.attention_pool.AttentionPoolPrr": _FUSED,
    "layers.attention_pool2d.AttentionPool2d": _FUSED,
    "layers.attention_pool2d.RotAttentionPool2d": _ROTARY,
    "layers.bottleneck_attn.BottleneckAttn": _RELATIVE,
    "layers.diff_attention.DiffAttention": _FUSED,
    "layers.halo_attn.HaloAttn": _RELATIVE,
    "models.beit.Attention": _BIASED,
    "models.cait.ClassAttn": _FUSED,
    "models.cait.TalkingHeadAttn": _TALKING,
    "models.convit.GPSA": _EXPLICIT,
    "models.convit.MHSA": AttentionForm(_TWO, no_qkr="its two products are not one fused call"),
    "models.cpubone.ConvAttention": _FUSED,
    "models.crossvit.CrossAttention": _EXPLICIT,
    "models.davit.ChannelAttention": _CHANNELS,
    "models.davit.ChannelAttentionV2": _CHANNELS,
    "models.davit.WindowAttention": _PLAIN,
    "models.edgenext.CrossCovarianceAttn": _CHANNELS,
    "models.efficientformer.Attention": _EXPLICIT,
    "models.efficientformer_v2.Attention2d": _TALKING,
    "models.efficientformer_v2.Attention2dDownsample": _EXPLICIT,
    "models.efficientvit_msra.CascadedGroupAttention": _CONVOLVED,
    "models.eva.EvaAttention": _ROTARY,
    "models.fastvit.Attention": _PLAIN,
    "models.gcvit.WindowAttentionGlobal": _EXPLICIT,
    "models.gemma4_vit.Gemma4Attention": _ROTARY,
    "models.hiera.MaskUnitAttention": _POOLED,
    "models.hieradet_sam2.MultiScaleAttention": _POOLED,
    "models.iformer.SHMA": _FUSED,
    "models.levit.Attention": _LEVIT,
    "models.levit.AttentionDownsample": _LEVIT,
    "models.lowformer.ConvAttention": _FUSED,
    "models.maxxvit.Attention2d": _FUSED,
    "models.maxxvit.AttentionCl": _FUSED,
    "models.metaformer.Attention": _PLAIN,
    "models.mvitv2.MultiScaleAttention": AttentionForm(_TWO, no_qkr=_POOLED_QUERY),
    "models.nest.Attention": _BLOCKS,
    "models.nextvit.EfficientAttention": _FUSED,
    "models.pvt_v2.Attention": _FUSED,
    "models.shvit.SHSA": _CONVOLVED,
    "models.swin_transformer.WindowAttention": _PLAIN,
    "models.swin_transformer_v2.WindowAttention": _COSINE,
    "models.swin_transformer_v2_cr.WindowMultiHeadAttention": _COSINE,
    "models.tiny_vit.Attention": _FUSED,
    "models.tnt.Attention": _EXPLICIT,
    "models.twins.GlobalSubSampleAttn": _FUSED,
    "models.twins.LocallyGroupedAttn": _BLOCKS,
    "models.visformer.Attention": _FUSED,
    "models.vision_transformer.DiffParallelScalingBlock": _FUSED,
    "models.vision_transformer.ParallelScalingBlock": _FUSED,
    "models.vision_transformer_relpos.RelPosAttention": _PLAIN,
    "models.vision_transformer_sam.Attention": AttentionForm(no_qkr="heads are folded into the batch"),
    "models.volo.Attention": _PLAIN,
    "models.volo.ClassAttention": _EXPLICIT,
    "models.volo.OutlookAttention": AttentionForm(("softmax_value",), no_qkr="it has no query and key"),
    "models.xcit.XCA": AttentionForm(no_qkr=_CHANNELS.no_qkr),
}

_LINEAR = "linear attention: no softmax stands between its products"
_GATE = "a gate: its product pools the image, no query meets a key"

WITHOUT_FORM: dict[str, str] = {
    "layers.global_context.GlobalContext": _GATE,
    "layers.lambda_layer.LambdaLayer": _LINEAR,
    "layers.non_local_attn.BilinearAttnTransform": "a bilinear transform: no query meets a key",
    "models.coat.FactorAttnConvRelPosEnc": _LINEAR,
    "models.csatv2.SpatialTransformerBlock": "its softmax runs over the images of a batch",
    "models.efficientvim.HSMSSD": "a state-space mixer: no query meets a key",
    "models.efficientvit_mit.LiteMLA": _LINEAR,
    "models.gemma4_vit.Gemma4RotaryEmbedding2D": "it multiplies positions, not activations",
}
"""Classes that multiply activations, but not as attention does, and what they do instead."""


_registered: dict[type[nn.Module], AttentionForm] = {}
M = TypeVar("M", bound=type[nn.Module])


def attention_form(form: AttentionForm) -> Callable[[M], M]:
    """Decorate an attention class of another package: its products are quantized as ``form`` says.

    The package names the module of the class under the entry point group ``ofqctl.methods``.
    """

    def enter(cls: M) -> M:
        _registered[cls] = form
        return cls

    return enter


@cache
def _by_class() -> dict[type[nn.Module], AttentionForm]:
    """The forms of those listed classes that the installed timm has."""
    load_plugins()
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
    return _by_class().get(type(module)) or _registered.get(type(module))


def why_no_form(module: nn.Module) -> str:
    """Why the products of a module of a class without a form stay in float."""
    cls = type(module)
    return WITHOUT_FORM.get(f"{cls.__module__}.{cls.__qualname__}".removeprefix("timm."), NO_FORM)


def why_no_qkr(module: nn.Module) -> str | None:
    """Why query and key of an attention block cannot be merged, or None if they can."""
    form = form_of(module)
    if form is None:
        return why_no_form(module)
    if form.no_qkr is not None:
        return form.no_qkr
    if any(not isinstance(getattr(module, name, None), nn.Identity | None) for name in ("q_norm", "k_norm")):
        return "query and key are normalized before their product"
    qkv = module.qkv
    if type(qkv) is not nn.Linear or qkv.out_features != 3 * qkv.in_features:
        return "the heads together are not as wide as the input"
    return None
