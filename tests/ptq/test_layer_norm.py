"""Folding ranges into LayerNorm and what reads it: the function stays, the ranges become alike."""

import pytest
import timm
import torch
from torch import nn

from ofqctl.models import with_tokens
from ofqctl.ptq.layer_norm import Pair, find_pairs, fold_layer_norms

SMALL = {"num_classes": 10}
MODELS = {
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
    "beit_base_patch16_224": {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "eva02_tiny_patch14_224": {"img_size": 28, "patch_size": 7, "embed_dim": 48, "depth": 2, "num_heads": 3},
}


def lively(name: str, kwargs: dict) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.mul_(torch.rand_like(module.weight) * 3 + 0.1)
                module.bias.add_(torch.randn_like(module.bias))
    return model


def images_for(kwargs: dict) -> torch.Tensor:
    return torch.randn(4, 3, kwargs["img_size"], kwargs["img_size"], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_function_of_the_float_model_stays_to_rounding(name, strength):
    model, images = lively(name, MODELS[name]), images_for(MODELS[name])
    with torch.no_grad():
        before = model(images)
        assert fold_layer_norms(model, [images], strength=strength)
        assert (model(images) - before).abs().max() <= 1e-5 * before.abs().max()


def test_every_channel_of_a_folded_norm_has_the_same_range_around_zero(images):
    model = lively("vit_tiny_patch16_224", MODELS["vit_tiny_patch16_224"])
    fold_layer_norms(model, [images])
    outputs = []
    model.blocks[1].norm2.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    with torch.no_grad():
        model(images)
    rows = outputs[0].flatten(0, 1)
    width = rows.amax(0) - rows.amin(0)
    assert torch.allclose(width, width.mean().expand_as(width), rtol=1e-4)
    assert torch.allclose(rows.amax(0), -rows.amin(0), rtol=1e-3)


def test_the_readers_of_a_norm_are_found_by_what_reaches_them(tiny_vit, images):
    pairs = find_pairs(tiny_vit, images[:1])
    assert pairs == [
        Pair(f"blocks.{i}.{norm}", (f"blocks.{i}.{reader}",), shifts=True)
        for i in range(2)
        for norm, reader in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1"))
    ] + [Pair("norm", ("head",), shifts=True)]


def test_a_norm_that_something_else_reads_too_is_left_alone(tiny_vit, images):
    tiny_vit.blocks[0].mlp.register_forward_pre_hook(lambda _m, args: setattr(tiny_vit, "seen", args[0]))
    tiny_vit.head.register_forward_hook(lambda _m, _a, output: output + tiny_vit.seen.mean())
    assert "blocks.0.norm2" not in [pair.norm for pair in find_pairs(tiny_vit, images[:1])]


def test_without_a_bias_to_take_it_up_no_shift_is_moved(tiny_vit, images):
    tiny_vit.blocks[0].mlp.fc1.bias = None
    shifts = {pair.norm: pair.shifts for pair in find_pairs(tiny_vit, images[:1])}
    assert shifts["blocks.0.norm2"] is False
    assert shifts["blocks.0.norm1"] is True


@pytest.mark.parametrize("pool", ["map", "token"])
def test_patch_tokens_of_a_model_without_a_classifier_stay_as_well(images, pool):
    """The last norm of SigLIP is read by Linear layers alone, those of its pooling, but it gives the tokens, too."""
    torch.manual_seed(0)
    kwargs = MODELS["vit_tiny_patch16_224"] | {"global_pool": pool, "class_token": pool == "token"}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **kwargs).eval()
    with torch.no_grad():
        model.norm.weight.mul_(torch.rand_like(model.norm.weight) * 3 + 0.1)
        before = with_tokens(model, images)
        assert fold_layer_norms(model, [images])
        for output, wanted in zip(with_tokens(model, images), before, strict=True):
            assert (output - wanted).abs().max() <= 1e-4 * wanted.abs().max()
