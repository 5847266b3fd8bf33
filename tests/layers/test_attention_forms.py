"""Every registered attention class: its products are found, in their roles, and its function stays its own."""

import copy
import importlib
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import RelPosBias, RotaryEmbeddingCat
from torch import Tensor, nn

from ofqctl.layers.attention import form_of, open_products, quantize_attention, why_no_qkr
from ofqctl.layers.attention.forms import FORMS
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import ModulePlan, quantizer_plan

B, N, C, H = 2, 16, 24, 3  # images, tokens (4 x 4), channels, heads
MASK = torch.ones(N, N).tril().bool()
ROPE = RotaryEmbeddingCat(C // H, in_pixels=False, feat_shape=(4, 4)).get_embed()
WINDOWS = torch.zeros(B, N, N).masked_fill(torch.rand(B, N, N, generator=torch.manual_seed(0)) < 0.3, -100.0)
BIAS = partial(RelPosBias, window_size=(4, 4))


def tokens(*extra: Any, n: int = N, **named: Any) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    return lambda: ((torch.randn(B, n, C), *extra), named)


def feature_map(*extra: Any, size: int = 4, channels: int = C, **named: Any) -> Callable[[], Any]:
    return lambda: ((torch.randn(B, channels, size, size), *extra), named)


def channels_last(*shape: int) -> Callable[[], Any]:
    return lambda: ((torch.randn(B, *shape, C),), {})


# class under timm, arguments of its constructor, inputs
CASES: list[tuple[str, dict[str, Any], Callable[[], Any]]] = [
    ("layers.attention.Attention", {"dim": C, "num_heads": H, "qkv_bias": True}, tokens()),
    ("layers.attention.Attention", {"dim": C, "num_heads": H, "gated": True}, tokens(MASK)),
    ("layers.attention.Attention", {"dim": C, "num_heads": H, "qkv_bias": True}, tokens(is_causal=True)),
    ("layers.attention.Attention", {"dim": C, "num_heads": H}, tokens(WINDOWS[0])),
    ("layers.attention.Attention", {"dim": C, "num_heads": H, "qk_norm": True, "norm_layer": nn.LayerNorm}, tokens()),
    ("layers.attention.AttentionRope", {"dim": C, "num_heads": H, "num_prefix_tokens": 1}, tokens(ROPE, n=N + 1)),
    (
        "layers.attention.AttentionRope",
        {"dim": 2 * C, "num_heads": 2 * H, "num_kv_heads": H, "qkv_fused": False},
        lambda: ((torch.randn(B, N + 1, 2 * C), ROPE), {}),
    ),
    ("layers.attention2d.Attention2d", {"dim": C, "num_heads": H}, feature_map()),
    ("layers.attention2d.MultiQueryAttention2d", {"dim": C, "num_heads": H, "key_dim": 8}, feature_map()),
    ("layers.attention2d.MultiQueryAttention2d", {"dim": C, "num_heads": H, "kv_stride": 2}, feature_map()),
    ("layers.attention_pool.AttentionPoolLatent", {"in_features": C, "num_heads": H}, tokens()),
    ("layers.attention_pool.AttentionPoolPrr", {"dim": C, "num_heads": H}, tokens()),
    ("layers.attention_pool2d.AttentionPool2d", {"in_features": C, "feat_size": 4, "head_dim": 8}, feature_map()),
    (
        "layers.attention_pool2d.RotAttentionPool2d",
        {"in_features": C, "ref_feat_size": 4, "head_dim": 8},
        feature_map(),
    ),
    ("layers.bottleneck_attn.BottleneckAttn", {"dim": C, "feat_size": (4, 4), "num_heads": H}, feature_map()),
    ("layers.diff_attention.DiffAttention", {"dim": C, "num_heads": H}, tokens(MASK)),
    (
        "layers.halo_attn.HaloAttn",
        {"dim": C, "num_heads": H, "block_size": 4, "halo_size": 1},
        feature_map(size=8),
    ),
    ("models.beit.Attention", {"dim": C, "num_heads": H, "qkv_bias": True, "window_size": (4, 4)}, tokens(n=N + 1)),
    ("models.beit.Attention", {"dim": C, "num_heads": H, "qkv_bias": True}, tokens(torch.randn(1, H, N, N))),
    ("models.cait.ClassAttn", {"dim": C, "num_heads": H}, tokens()),
    ("models.cait.TalkingHeadAttn", {"dim": C, "num_heads": H}, tokens()),
    ("models.convit.GPSA", {"dim": C, "num_heads": H}, tokens()),
    ("models.convit.MHSA", {"dim": C, "num_heads": H}, tokens()),
    ("models.cpubone.ConvAttention", {"input_dim": 32, "att_stride": 2}, feature_map(size=8, channels=32)),
    ("models.crossvit.CrossAttention", {"dim": C, "num_heads": H}, tokens()),
    ("models.davit.ChannelAttention", {"dim": C, "num_heads": H}, tokens()),
    ("models.davit.ChannelAttentionV2", {"dim": C, "num_heads": H}, tokens()),
    ("models.davit.WindowAttention", {"dim": C, "num_heads": H, "window_size": (4, 4)}, tokens()),
    ("models.edgenext.CrossCovarianceAttn", {"dim": C, "num_heads": H}, tokens()),
    ("models.efficientformer.Attention", {"dim": C, "key_dim": 8, "num_heads": H, "resolution": 4}, tokens()),
    (
        "models.efficientformer_v2.Attention2d",
        {"dim": C, "key_dim": 8, "num_heads": H, "resolution": 4},
        feature_map(),
    ),
    (
        "models.efficientformer_v2.Attention2dDownsample",
        {"dim": C, "key_dim": 8, "num_heads": H, "resolution": 4, "out_dim": C},
        feature_map(),
    ),
    (
        "models.efficientvit_msra.CascadedGroupAttention",
        {"dim": C, "key_dim": 4, "num_heads": H, "attn_ratio": 2, "resolution": 4, "kernels": (3, 3, 3)},
        feature_map(),
    ),
    (
        "models.eva.EvaAttention",
        {"dim": C, "num_heads": H, "norm_layer": nn.LayerNorm},
        tokens(ROPE, n=N + 1),
    ),
    (
        "models.eva.EvaAttention",
        {"dim": C, "num_heads": H, "qkv_fused": False, "scale_norm": False},
        tokens(ROPE, torch.ones(N + 1, N + 1).tril().bool(), n=N + 1),
    ),
    ("models.fastvit.Attention", {"dim": C, "head_dim": 8, "qkv_bias": True}, feature_map()),
    (
        "models.gcvit.WindowAttentionGlobal",
        {"dim": C, "num_heads": H, "window_size": (4, 4), "use_global": False},
        tokens(),
    ),
    (
        "models.gcvit.WindowAttentionGlobal",
        {"dim": C, "num_heads": H, "window_size": (4, 4)},
        tokens(torch.randn(1, N, C)),
    ),
    (
        "models.gemma4_vit.Gemma4Attention",
        {"dim": C, "num_heads": H, "head_dim": 8},
        tokens(torch.ones(B, N, 8), torch.zeros(B, N, 8)),
    ),
    ("models.hiera.MaskUnitAttention", {"dim": C, "dim_out": C, "heads": H, "q_stride": 4}, tokens()),
    (
        "models.hiera.MaskUnitAttention",
        {"dim": C, "dim_out": C, "heads": H, "window_size": 4, "use_mask_unit_attn": True},
        tokens(),
    ),
    ("models.hieradet_sam2.MultiScaleAttention", {"dim": C, "dim_out": C, "num_heads": H}, channels_last(4, 4)),
    ("models.iformer.SHMA", {"dim": C, "window_size": 4}, feature_map(size=6)),
    ("models.levit.Attention", {"dim": C, "key_dim": 8, "num_heads": H, "resolution": 4}, tokens()),
    (
        "models.levit.Attention",
        {"dim": C, "key_dim": 8, "num_heads": H, "resolution": 4, "use_conv": True},
        feature_map(),
    ),
    (
        "models.levit.AttentionDownsample",
        {"in_dim": C, "out_dim": C, "key_dim": 8, "num_heads": H, "resolution": 4},
        tokens(),
    ),
    (
        "models.levit.AttentionDownsample",
        {"in_dim": C, "out_dim": C, "key_dim": 8, "num_heads": H, "resolution": 4, "use_conv": True},
        feature_map(),
    ),
    ("models.lowformer.ConvAttention", {"input_dim": 64, "att_stride": 2}, feature_map(size=8, channels=64)),
    ("models.maxxvit.Attention2d", {"dim": C, "dim_head": 8, "rel_pos_cls": BIAS}, feature_map()),
    ("models.maxxvit.AttentionCl", {"dim": C, "dim_head": 8, "rel_pos_cls": BIAS}, channels_last(4, 4)),
    ("models.metaformer.Attention", {"dim": C, "head_dim": 8}, tokens()),
    (
        "models.mvitv2.MultiScaleAttention",
        {"dim": C, "dim_out": C, "feat_size": (4, 4), "num_heads": H, "has_cls_token": False},
        tokens([4, 4]),
    ),
    ("models.nest.Attention", {"dim": C, "num_heads": H}, channels_last(2, N)),
    ("models.nextvit.EfficientAttention", {"dim": C, "head_dim": 8, "sr_ratio": 2}, tokens()),
    ("models.pvt_v2.Attention", {"dim": C, "num_heads": H, "sr_ratio": 2}, tokens([4, 4])),
    ("models.shvit.SHSA", {"dim": C, "qk_dim": 8, "pdim": 12}, feature_map()),
    ("models.swin_transformer.WindowAttention", {"dim": C, "num_heads": H, "window_size": (4, 4)}, tokens(WINDOWS)),
    ("models.swin_transformer_v2.WindowAttention", {"dim": C, "num_heads": H, "window_size": (4, 4)}, tokens(WINDOWS)),
    (
        "models.swin_transformer_v2_cr.WindowMultiHeadAttention",
        {"dim": C, "num_heads": H, "window_size": (4, 4)},
        tokens(WINDOWS),
    ),
    ("models.tiny_vit.Attention", {"dim": C, "key_dim": 8, "num_heads": H, "resolution": (4, 4)}, tokens()),
    ("models.tnt.Attention", {"dim": C, "hidden_dim": C, "num_heads": H}, tokens()),
    ("models.twins.GlobalSubSampleAttn", {"dim": C, "num_heads": H, "sr_ratio": 2}, tokens((4, 4))),
    ("models.twins.LocallyGroupedAttn", {"dim": C, "num_heads": H, "ws": 2}, tokens((4, 4))),
    ("models.visformer.Attention", {"dim": C, "num_heads": H}, feature_map()),
    ("models.vision_transformer.DiffParallelScalingBlock", {"dim": C, "num_heads": H}, tokens()),
    ("models.vision_transformer.ParallelScalingBlock", {"dim": C, "num_heads": H}, tokens(MASK)),
    ("models.vision_transformer_relpos.RelPosAttention", {"dim": C, "num_heads": H, "rel_pos_cls": BIAS}, tokens()),
    (
        "models.vision_transformer_sam.Attention",
        {"dim": C, "num_heads": H, "use_rel_pos": True, "input_size": (4, 4)},
        channels_last(4, 4),
    ),
    ("models.volo.Attention", {"dim": C, "num_heads": H, "qkv_bias": True}, channels_last(4, 4)),
    ("models.volo.ClassAttention", {"dim": C, "num_heads": H}, tokens()),
    ("models.volo.OutlookAttention", {"dim": C, "num_heads": H}, channels_last(4, 4)),
    ("models.xcit.XCA", {"dim": C, "num_heads": H}, tokens()),
]
# the query adds to the logits outside its product with the key too
QUERY_IN_BIAS = ("BottleneckAttn", "HaloAttn", "mvitv2.MultiScaleAttention", "vision_transformer_sam.Attention")
every_case = pytest.mark.parametrize(("path", "kwargs", "inputs"), CASES, ids=[case[0] for case in CASES])


def build(path: str, kwargs: dict[str, Any]) -> nn.Module:
    """In evaluation mode, no parameter left at a constant start value."""
    torch.manual_seed(0)
    module, _, name = f"timm.{path}".rpartition(".")
    attention = getattr(importlib.import_module(module), name)(**kwargs)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    open_products(attention)
    attention.eval()  # some classes of timm return nothing here
    return attention


def run(attention: nn.Module, inputs: Callable[[], Any], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    args, named = inputs()
    out = attention(*args, **named)
    return out if isinstance(out, Tensor) else out[0]


def redirected(attention: nn.Module, plan: ModulePlan | None = None) -> tuple[nn.Module, dict[str, list[Tensor]]]:
    """A copy with its products redirected, in float unless ``plan`` says otherwise, and a record of their operands."""
    attention = copy.deepcopy(attention)
    quantize_attention(attention, plan or ModulePlan(kind="attention"))
    seen: dict[str, list[Tensor]] = defaultdict(list)
    for name in ("q", "k", "softmax", "v"):
        operand = getattr(attention.products, name, None)
        if operand is not None:
            operand.register_forward_hook(lambda _m, args, _out, name=name: seen[name].append(args[0]))
    return attention, seen


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))


def test_every_registered_class_exists_and_has_a_case():
    assert {path for path, _, _ in CASES} == set(FORMS)


@every_case
def test_redirected_products_keep_the_function(path, kwargs, inputs):
    attention = build(path, kwargs)
    ours, seen = redirected(attention)
    close(run(ours, inputs), run(attention, inputs))
    assert seen.keys() == form_of(attention).operands


@every_case
def test_operands_are_what_their_names_say(path, kwargs, inputs):
    attention = build(path, kwargs)
    form = form_of(attention)
    ours, seen = redirected(attention)
    run(ours, inputs)
    for weights, value in zip(seen["softmax"], seen["v"], strict=True):
        assert weights.shape[-1] == value.shape[-2]
        if not form.signed_weights:
            assert bool((weights >= 0).all())
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    for weights, query, key in zip(seen["softmax"], seen["q"], seen["k"], strict="q" in form.operands):
        assert weights.shape[-2:] == (query.shape[-2], key.shape[-2])
        assert query.shape[-1] == key.shape[-1]


@pytest.mark.parametrize(
    ("path", "kwargs", "inputs"),
    [case for case in CASES if not case[0].endswith(QUERY_IN_BIAS) and "k" in FORMS[case[0]].operands],
)
def test_logits_are_the_product_of_query_and_key(path, kwargs, inputs):
    """With all keys 0, nothing of the input is left in the softmax output."""
    attention = build(path, kwargs)
    ours, seen = redirected(attention)
    ours.products.k.register_forward_hook(lambda _m, _args, key: torch.zeros_like(key))
    for seed in (1, 2):
        run(ours, inputs, seed)
    calls = len(seen["softmax"]) // 2
    for first, second in zip(seen["softmax"][:calls], seen["softmax"][calls:], strict=True):
        torch.testing.assert_close(first, second)


@every_case
def test_gradients_flow_through_quantized_operands(path, kwargs, inputs):
    attention = build(path, kwargs)
    if not list(attention.parameters()):
        pytest.skip("it has no parameters")
    attention.train()
    run(attention, inputs).square().sum().backward()
    trainable = {name for name, p in attention.named_parameters() if p.grad is not None}
    form = form_of(attention)
    operands = {
        name: quantizer_plan(
            method="lsq",
            bits=4,
            step_shape=(),
            shift_shape=None if name == "softmax" else (1,),
            signed=name != "softmax" or form.signed_weights,
        )
        for name in form.operands
    }
    ours, _ = redirected(build(path, kwargs), ModulePlan(kind="attention", operands=operands))
    calibrate(ours, inputs)
    ours.train()
    run(ours, inputs).square().sum().backward()
    grads = {name: p.grad for name, p in ours.named_parameters()}
    steps = {f"products.{name}.step" for name in operands}
    assert all(grads[name] is not None and bool(grads[name].isfinite().all()) for name in trainable | steps)


@pytest.mark.parametrize(
    ("path", "kwargs", "inputs"), [case for case in CASES if FORMS[case[0]].no_qkr is None and "qk_norm" not in case[1]]
)
def test_merged_query_and_key_keep_the_function(path, kwargs, inputs):
    attention = build(path, kwargs)
    assert why_no_qkr(attention) is None
    ours, _ = redirected(attention, ModulePlan(kind="qkr"))
    torch.testing.assert_close(run(ours, inputs), run(attention, inputs), rtol=1e-4, atol=1e-5)


def calibrate(attention: nn.Module, inputs: Callable[[], Any]) -> None:
    quantizers = [module for module in attention.modules() if isinstance(module, Quantizer)]
    for quantizer in quantizers:
        quantizer.observing = True
    with torch.no_grad():
        run(attention, inputs)
    for quantizer in quantizers:
        quantizer.observing = False
        quantizer.finish()


def test_normalized_query_and_key_are_not_merged():
    attention = build("layers.attention.Attention", {"dim": C, "qk_norm": True, "norm_layer": nn.LayerNorm})
    assert why_no_qkr(attention) == "query and key are normalized before their product"
