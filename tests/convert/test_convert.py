"""What conversion does to a model, and what it leaves alone."""

import copy

import pytest
import timm
import torch
from torch import nn

from ofqctl.convert import convert, describe
from ofqctl.errors import RecipeError
from ofqctl.layers import QuantConv2d, QuantLinear
from ofqctl.ptq import calibrate
from ofqctl.recipe import Activations, Override, Weights
from ofqctl.recipe.catalogue import load, names

FLOAT = [f"{part}bits=32" for part in ("weights.", "activations.")] + [
    f"{end}.{part}.bits=32" for end in ("first", "last") for part in ("weights", "activations")
]
SIZE = (3, 32, 32)


@pytest.mark.parametrize("qkr", ["true", "false"])
def test_with_all_quantizers_at_32_bits_the_function_is_the_float_models(tiny_vit, images, qkr):
    for bias in (tiny_vit.blocks[0].attn.qkv.bias, tiny_vit.blocks[1].attn.qkv.bias):
        nn.init.normal_(bias)
    expected = tiny_vit(images)
    convert(tiny_vit, load("ofq/vit_w2a2", [*FLOAT, f"attention.qkr={qkr}"]), SIZE)
    assert torch.allclose(tiny_vit(images), expected, atol=1e-5)


@pytest.mark.parametrize("name", names())
def test_every_recipe_converts_calibrates_and_gives_every_parameter_a_gradient(tiny_vit, images, name):
    plan = convert(tiny_vit, load(name), SIZE)
    assert calibrate(tiny_vit, plan, [images]) == 4
    assert torch.isfinite(tiny_vit(images)).all()
    tiny_vit.train()(images).square().sum().backward()
    missing = [n for n, p in tiny_vit.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


def test_pretrained_values_survive(tiny_vit):
    before = {n: p.clone() for n, p in tiny_vit.named_parameters()}
    convert(tiny_vit, load("ptq/minmax"), SIZE)
    after = dict(tiny_vit.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in before.items())


def test_first_and_last_layer_have_their_own_bits(tiny_vit):
    plan = convert(tiny_vit, load("ofq/vit_w2a2"), SIZE)
    bits = {n: m.weight.bits for n, m in plan.modules.items() if m.weight}
    assert bits["patch_embed.proj"] == bits["head"] == 8
    assert bits["blocks.0.mlp.fc1"] == 2
    assert isinstance(tiny_vit.patch_embed.proj, QuantConv2d)
    assert isinstance(tiny_vit.head, QuantLinear)


@pytest.mark.parametrize("qkr", ["false", "true"])
def test_only_rows_that_no_product_sums_over_are_dynamic(tiny_vit, qkr):
    recipe = load(
        "statsq", [f"attention.qkr={qkr}", *(f"{part}activations.dynamic=true" for part in ("", "first.", "last."))]
    )
    plan = convert(tiny_vit, recipe, SIZE)
    static = {f"{name}.{o}" for name, m in plan.modules.items() for o, q in m.operands.items() if not q.dynamic}
    assert static == {"patch_embed.proj.input", "blocks.0.attn.v", "blocks.1.attn.v"}


def test_the_second_mlp_layer_and_the_softmax_output_are_unsigned(tiny_vit):
    plan = convert(tiny_vit, load("ofq/vit_w2a2"), SIZE)
    assert plan.modules["blocks.0.mlp.fc2"].operands["input"].signed is False
    assert plan.modules["blocks.0.attn"].operands["softmax"].signed is False
    assert plan.modules["blocks.0.mlp.fc1"].operands["input"].signed is True


def test_shapes_of_steps_and_shifts_are_those_of_the_paper(tiny_vit):
    plan = convert(tiny_vit, load("ofq/vit_w2a2"), SIZE).modules
    tokens, width, heads = 17, 48, 3
    assert plan["blocks.0.mlp.fc1"].operands["input"].step_shape == (tokens, 1)
    assert plan["blocks.0.mlp.fc1"].operands["input"].shift_shape == (width,)
    assert plan["blocks.0.attn"].operands["qkx"].step_shape == (heads, tokens, 1)
    assert plan["blocks.0.attn"].operands["v"].step_shape == (heads, 1, width // heads)
    assert plan["blocks.0.attn"].operands["softmax"].step_shape == (tokens, 1)
    assert plan["blocks.0.attn"].weight.step_shape == (heads, width, 1)
    assert plan["patch_embed.proj"].operands["input"].step_shape == (3, 1, 1)
    assert plan["patch_embed.proj"].operands["input"].shift_shape == (1, 32, 32)
    assert plan["head"].operands["input"].step_shape == ()


def test_overrides_apply_in_order(tiny_vit):
    recipe = load("ptq/minmax").model_copy(
        update={
            "layers": (
                Override(target="blocks.*.mlp.*", weights=Weights(bits=4)),
                Override(target="blocks.1.mlp.fc1", weights=Weights(bits=3)),
            )
        }
    )
    plan = convert(tiny_vit, recipe, SIZE).modules
    assert [plan[f"blocks.{i}.mlp.fc1"].weight.bits for i in range(2)] == [4, 3]
    assert plan["blocks.0.attn.qkv"].weight.bits == 8


def test_a_target_that_matches_nothing_is_an_error_with_the_closest_name(tiny_vit):
    wrong = Override(target="blocks.0.mlp.fc3", weights=Weights(bits=4))
    recipe = load("ptq/minmax").model_copy(update={"layers": (wrong,)})
    with pytest.raises(RecipeError, match=r"layers\.0\.target") as caught:
        convert(tiny_vit, recipe, SIZE)
    assert "blocks.0.mlp.fc" in caught.value.hint


@pytest.mark.parametrize(
    ("override", "qkr", "part"),
    [
        (Override(target="blocks.*.attn", weights=Weights(bits=4)), False, "weights"),
        (Override(target="*.qkv", activations=Activations(bits=4)), True, "activations"),
    ],
)
def test_an_override_of_what_no_module_has_is_refused(tiny_vit, override, qkr, part):
    recipe = load("statsq", [f"attention.qkr={qkr}"]).model_copy(update={"layers": (override,)})
    with pytest.raises(RecipeError, match=rf"layers\.0\.{part}: no quantizer"):
        convert(tiny_vit, recipe, SIZE)


@pytest.mark.parametrize(
    ("override", "qkr"),
    [
        (Override(target="blocks.*.attn", weights=Weights(bits=4)), True),
        (Override(target="*.qkv", weights=Weights(bits=4)), True),
        (Override(target="*.qkv", activations=Activations(bits=4)), False),
    ],
)
def test_an_override_counts_where_some_quantizer_takes_it(tiny_vit, override, qkr):
    recipe = load("statsq", [f"attention.qkr={qkr}"])
    changed = recipe.model_copy(update={"layers": (override,)})
    assert convert(copy.deepcopy(tiny_vit), recipe, SIZE) != convert(copy.deepcopy(tiny_vit), changed, SIZE)


def test_describe_settles_what_was_left_to_the_data(tiny_vit, images):
    plan = convert(tiny_vit, load("ofq/vit_w2a2"), SIZE)
    assert plan.modules["patch_embed.proj"].operands["input"].signed is None
    calibrate(tiny_vit, plan, [images.abs()])
    assert describe(tiny_vit, plan).modules["patch_embed.proj"].operands["input"].signed is False


@pytest.mark.parametrize("recipe", ["ptq/minmax", "ofq/vit_w2a2"])
@pytest.mark.parametrize("bits", [4, 8])
def test_nothing_depends_on_the_batch(tiny_vit, recipe, bits):
    batch = torch.randn(64, 3, 32, 32)
    plan = convert(tiny_vit, load(recipe, [f"weights.bits={bits}", f"activations.bits={bits}"]), SIZE)
    calibrate(tiny_vit, plan, [batch[:16]])
    with torch.inference_mode():
        whole = tiny_vit(batch)
        for size in (1, 7):
            parts = torch.cat([tiny_vit(part) for part in batch.split(size)])
            assert torch.allclose(parts, whole, atol=1e-5)


def test_copies_do_not_share_a_weight(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)
    calibrate(tiny_vit, plan, [images])
    with torch.no_grad():
        expected = tiny_vit(images)
        clone = copy.deepcopy(tiny_vit)
        assert torch.equal(clone(images), expected)
        clone.blocks[0].mlp.fc1.weight.zero_()
        assert not torch.equal(clone(images), expected)
        assert torch.equal(tiny_vit(images), expected)


def test_distillation_heads_answer_both_in_training(images):
    model = timm.create_model(
        "deit_tiny_distilled_patch16_224",
        num_classes=7,
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=2,
        num_heads=3,
    )
    plan = convert(model, load("ofq/vit_w2a2"), SIZE)
    calibrate(model, plan, [images])
    assert {"head", "head_dist"} <= plan.modules.keys()
    assert all(plan.modules[n].weight.bits == 8 for n in ("head", "head_dist"))
    model.set_distilled_training(True)
    logits, distilled = model.train()(images)
    assert logits.shape == distilled.shape == (4, 7)
    assert model.eval()(images).shape == (4, 7)


def test_a_new_classifier_can_be_put_on(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)
    calibrate(tiny_vit, plan, [images])
    tiny_vit.reset_classifier(5)
    assert tiny_vit(images).shape == (4, 5)
