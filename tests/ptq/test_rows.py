"""Which layers get rows of their own, and what that gains."""

import pytest
import torch

from ofqctl.errors import RecipeError
from ofqctl.recipe.catalogue import load

ONE_STEP = ("activations.granularity=tensor", "activations.range=minmax", "activations.bits=8", "weights.bits=8")
MASSIVE = "blocks.1.mlp.fc2"


@pytest.fixture
def lively_vit(lively_vit):
    """With a massive activation of one token, which is not the class token, in one layer."""
    with torch.no_grad():
        lively_vit.pos_embed[0, 3, 5] = 100.0
        lively_vit.blocks[1].mlp.fc1.weight[0, 5] = 50.0
    return lively_vit


def test_rows_are_chosen_where_one_token_is_massive_and_bring_the_model_nearer(quantized):
    without, chosen = quantized(assignments=ONE_STEP), quantized({"stage": "rows"}, assignments=ONE_STEP)
    assert MASSIVE in chosen.task.figures["rows"]["chosen"]
    plans = {name: m.operands["input"] for name, m in chosen.task.plan.modules.items() if m.kind == "linear"}
    assert {name for name, plan in plans.items() if plan.dynamic} == set(chosen.task.figures["rows"]["chosen"])
    assert chosen.error < 0.5 * without.error


def test_both_errors_of_every_layer_are_listed(quantized):
    figures = quantized({"stage": "rows", "gain": 1e9}, assignments=ONE_STEP).task.figures["rows"]
    assert figures["chosen"] == []
    massive = figures["errors"].pop(MASSIVE)
    assert massive["one_step"] > 10 * massive["rows"]
    assert all(error["one_step"] < 10 * error["rows"] for error in figures["errors"].values())


def test_layers_that_have_rows_are_left_alone(quantized):
    figures = quantized({"stage": "rows"}, assignments=("activations.dynamic=true",)).task.figures["rows"]
    assert set(figures["errors"]) == {"head"}  # the last layer has settings of its own


@pytest.mark.parametrize(("bits", "of_keys"), [(8, 7), (4, 4)])
def test_keys_and_values_have_at_most_bits_of_their_own(quantized, bits, of_keys):
    plan = quantized(base="deploy/w8a8", assignments=(f"activations.bits={bits}",)).task.plan
    found = {name: operand.bits for name, operand in plan.modules["blocks.0.attn"].operands.items()}
    assert found == {"q": bits, "k": of_keys, "softmax": bits, "v": of_keys}


def test_keys_and_values_of_float_activations_are_float(quantized):
    assert "blocks.0.attn" not in quantized(base="deploy/w8a8", assignments=("activations.bits=32",)).task.plan.modules


@pytest.mark.parametrize(("recipe", "key"), [("deploy/w8a8", "kv_bits"), ("deploy/w4a4", "dynamic")])
def test_settings_of_products_that_are_not_quantized_are_refused(recipe, key):
    with pytest.raises(RecipeError, match=key):
        load(recipe, ["attention.products=false"])


def test_attention_alone_can_have_rows_of_its_own(quantized):
    plan = quantized(assignments=(*ONE_STEP, "attention.dynamic=true")).task.plan
    found = {name: operand.dynamic for name, operand in plan.modules["blocks.0.attn"].operands.items()}
    assert found == {"q": True, "k": True, "softmax": True, "v": False}
    assert not plan.modules["blocks.0.mlp.fc1"].operands["input"].dynamic
