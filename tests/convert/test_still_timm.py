"""A converted model is still a timm model: heads, tokens, masks and shared blocks go on working."""

import copy

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from ofqctl.artifact.run import serialize
from ofqctl.artifact.tensors import from_tensors
from ofqctl.convert import apply_plan, convert
from ofqctl.convert.survey import survey
from ofqctl.layers import QuantConv2d, QuantLinear
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 10}


def tiny(name: str = "vit_tiny_patch16_224", **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **(TINY | kwargs))


def quantized(model: nn.Module, recipe: str = "ofq/vit_w2a2"):
    plan = convert(model, load(recipe), SIZE)
    calibrate(model, plan, [torch.randn(2, *SIZE)])
    return plan


@pytest.mark.parametrize("recipe", ["ofq/vit_w2a2", "ptq/minmax"])
def test_a_new_classifier_is_a_plain_linear_layer(recipe):
    model = tiny()
    quantized(model, recipe)
    assert type(model.head) is QuantLinear
    model.reset_classifier(7)
    assert type(model.head) is nn.Linear
    assert model(torch.randn(2, *SIZE)).shape == (2, 7)


def test_both_distillation_heads_are_quantized_and_returned_in_distilled_training():
    model = tiny("deit_tiny_distilled_patch16_224")
    plan = quantized(model)
    assert {plan.modules[head].weight.bits for head in ("head", "head_dist")} == {8}
    model.train()
    model.set_distilled_training(True)
    first, second = model(torch.randn(2, *SIZE))
    assert first.shape == second.shape == (2, 10)
    (first.sum() + second.sum()).backward()
    assert all(head.weight.grad is not None for head in (model.head, model.head_dist))


@pytest.mark.parametrize("kwargs", [{"reg_tokens": 4}, {"class_token": False, "global_pool": "avg"}])
def test_class_and_register_tokens_are_counted(kwargs):
    model = tiny(**kwargs)
    plan = quantized(model)
    expected = 16 + (0 if kwargs.get("class_token") is False else 1) + kwargs.get("reg_tokens", 0)
    assert plan.modules["blocks.0.attn"].operands["x"].step_shape == (expected, 1)
    assert model.forward_features(torch.randn(2, *SIZE)).shape == (2, expected, 24)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_shifted_windows_keep_their_masks_and_position_bias(name):
    """At 32 bits the products run redirected but exact."""
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (3, 6)}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **sizes)
    reference = copy.deepcopy(model).eval()
    images = torch.randn(2, *SIZE)
    sides = ("weights", "activations")
    exact = [f"{part}{side}.bits=32" for part in ("", "first.", "last.") for side in sides]
    plan = convert(model, load("ofq/vit_w2a2", exact), SIZE)
    assert any(module.kind == "qkr" for module in plan.modules.values()) == (name.startswith("swin_"))
    torch.testing.assert_close(model.eval()(images), reference(images), rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """One convolution and one Linear, each reached through two blocks."""

    def __init__(self) -> None:
        super().__init__()
        conv, linear = nn.Conv2d(3, 3, 1), nn.Linear(3, 3)
        self.blocks = nn.ModuleList([nn.ModuleDict({"conv": conv, "linear": linear}) for _ in range(2)])

    def forward(self, x):
        for block in self.blocks:
            x = block["linear"](block["conv"](x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x.mean((2, 3))


def test_a_module_that_blocks_share_is_quantized_in_all_of_them_and_stored_once():
    model, images = Shared(), torch.randn(2, *SIZE)
    other = Shared()
    plan = quantized(model, "ptq/minmax")
    assert model.blocks[0]["conv"] is model.blocks[1]["conv"]
    assert [type(m) for m in model.blocks[1].values()] == [QuantConv2d, QuantLinear]
    stored = safetensors.torch.load(serialize(model))
    assert not any(name.startswith("blocks.1") for name in stored)
    apply_plan(other, plan)
    from_tensors(other, stored, "here")
    assert torch.equal(model.eval()(images), other.eval()(images))


def test_the_survey_counts_products_of_two_activations_only():
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32))

        def forward(self, x):
            return torch.bmm(x.mean(1), x.mean(1).mT) @ self.weight

    assert survey(Mixer(), SIZE).products("") == 1


def test_what_timm_caches_in_evaluation_mode_does_not_outlive_the_survey():
    model = timm.create_model("levit_128s", img_size=64, num_classes=10).eval()
    convert(model, load("ptq/minmax"), (3, 64, 64))
    caches = [m.attention_bias_cache for m in model.modules() if hasattr(m, "attention_bias_cache")]
    assert caches and not any(caches)
