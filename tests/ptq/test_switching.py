"""What quantizers hold."""

import torch
from torch import nn

from ofqctl.convert import convert
from ofqctl.ptq.switching import Content, Quantizers, contents
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)


def test_weights_hold_their_elements_and_activations_those_of_one_image(lively_vit):
    width, heads = lively_vit.embed_dim, lively_vit.blocks[0].attn.num_heads
    tokens = lively_vit.pos_embed.shape[1]
    plan = convert(lively_vit, load("ptq/mse", ["activations.bits=8", "attention.kv_bits=7"]), SIZE)
    weights = contents(lively_vit, plan, "weights", SIZE)
    assert weights["blocks.0.attn.qkv"] == Content(3 * width * width, 3 * width * width * 8)
    assert "blocks.0.attn" not in weights
    activations = contents(lively_vit, plan, "activations", SIZE)
    assert activations["blocks.0.attn.qkv"] == Content(tokens * width, tokens * width * 8)
    queries, softmax = tokens * width, heads * tokens * tokens
    assert activations["blocks.0.attn"] == Content(3 * queries + softmax, queries * (8 + 7 + 7) + softmax * 8)


def test_merged_query_and_key_hold_a_product_for_each_head(lively_vit):
    plan = convert(lively_vit, load("ofq/vit_w2a2", ["weights.bits=3"]), SIZE)
    width, heads = lively_vit.embed_dim, lively_vit.blocks[0].attn.num_heads
    assert contents(lively_vit, plan, "weights", SIZE)["blocks.0.attn"].numbers == heads * width * width


def test_what_was_replaced_is_back_after_a_failure(lively_vit):
    plan = convert(lively_vit, load("ptq/mse"), SIZE)
    quantizers = [m for m in lively_vit.modules() if hasattr(m, "plan")]

    def failing(name, quantizer, part):
        if name == "head":
            raise ValueError("no")
        return nn.Identity()

    switched = Quantizers(lively_vit, plan)
    try:
        with switched.replaced(failing):
            raise AssertionError("not reached")
    except ValueError:
        pass
    assert [m for m in lively_vit.modules() if hasattr(m, "plan")] == quantizers
    with switched.only(weights=["head"]), torch.no_grad():
        assert [m for m in lively_vit.modules() if hasattr(m, "plan")] == [lively_vit.head.weight_quantizer]
