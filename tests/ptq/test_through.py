"""Reconstruction at one width after the other."""

import copy

import pytest
import torch

from ofqctl.convert import convert, requantize
from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.ptq import Clock, calibrate
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)
AT_2 = ("weights.bits=2", "activations.bits=2")
STAGE = {"stage": "reconstruct", "iterations": 12, "batch_size": 8, "views": 24}


def test_the_last_width_is_the_recipes_and_weights_have_gone_on(quantized):
    at_once = quantized(STAGE, assignments=AT_2)
    on_the_way = quantized({**STAGE, "through": [4, 3]}, assignments=AT_2)
    assert on_the_way.task.plan == at_once.task.plan
    bits = {name: site.weight_quantizer.plan.bits for name, site in weight_sites(on_the_way.model)}
    assert set(bits.values()) == {2, 8}
    assert bits == {name: on_the_way.task.plan.modules[name.removesuffix(".weight")].weight.bits for name in bits}
    for (name, one), (_, other) in zip(weight_sites(at_once.model), weight_sites(on_the_way.model), strict=True):
        assert not torch.equal(one.latent(), other.latent()), name
    assert on_the_way.error < quantized(assignments=AT_2).error


def test_a_time_budget_is_for_all_widths_together(quantized):
    found = quantized({**STAGE, "iterations": 10**6, "through": [3]}, assignments=AT_2, clock=Clock(2.0))
    assert any("of 1000000 iterations for each of" in note for note in found.task.notes)
    assert {site.weight_quantizer.plan.bits for _, site in weight_sites(found.model)} == {2, 8}


@pytest.mark.parametrize(("through", "message"), [([3, 4], "from many bits to few"), ([9], "less than or equal to 8")])
def test_widths_in_another_order_are_refused(through, message):
    with pytest.raises(RecipeError, match=message):
        load("ptq/best", [f"ptq.1.through={through}"])


def test_a_width_that_a_method_lacks_is_refused(quantized):
    with pytest.raises(RecipeError, match=r"through: .*denseshift"):
        quantized({**STAGE, "through": [8]}, base="denseshift/vit_w3a8", assignments=("weights.bits=3",))


@pytest.mark.parametrize("recipe", ["ptq/mse", "ofq/vit_w2a2", "denseshift/vit_w3a8"])
def test_new_quantizers_of_the_same_plan_give_what_the_old_ones_gave(lively_vit, images, recipe):
    decomposed = ("weights.decomposition=true", "weights.bits=3") if "denseshift" in recipe else ("weights.bits=3",)
    plan = convert(lively_vit, load(recipe, decomposed), SIZE)
    calibrate(lively_vit, plan, [images])
    again = copy.deepcopy(lively_vit)
    requantize(again, plan)
    calibrate(again, plan, [images])
    with torch.no_grad():
        expected = lively_vit(images)
        if "denseshift" in recipe:  # the latent weight is what it was quantized to
            assert torch.isfinite(again(images)).all()
        else:
            assert torch.equal(again(images), expected)
