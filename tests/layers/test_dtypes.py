"""A quantized model in another floating-point type: it runs, trains, and gives nearly what it gives in float32."""

import copy

import pytest
import torch

from ofqctl.convert import apply_plan, convert, describe
from ofqctl.layers import weight_sites
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)
EIGHT = ("weights.bits=8", "activations.bits=8")
RECIPES = {
    "uniform, zero points": ("ptq/minmax", EIGHT),
    "uniform, rows relative to their largest magnitude": (
        "ptq/minmax",
        (*EIGHT, "activations.dynamic=true", "activations.granularity=head"),
    ),
    "learned steps": ("lsq", EIGHT),
    "learned steps and shifts, merged query and key": ("ofq/vit_w2a2", EIGHT),
    "merged query and key in float": ("ofq/vit_w2a2", ("weights.bits=32", "activations.bits=8")),
}
TYPES = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float64: 2.0**-24}  # and their rounding of float32


def quantized(model, images, recipe):
    name, assignments = RECIPES[recipe]
    model.plan = convert(model, load(name, assignments), SIZE)
    calibrate(model, model.plan, [images])
    return model


def distance(one, other):
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("recipe", RECIPES)
def test_logits_and_gradients_are_near_those_in_float32_in_evaluation_and_in_training(tiny_vit, images, recipe, dtype):
    original = copy.deepcopy(tiny_vit)
    model = quantized(tiny_vit, images, recipe)
    cast = copy.deepcopy(model).to(dtype)
    noise = distance(original(images), model(images))  # a code that flips moves the logits by a part of it
    for training in (False, True):
        model.train(training), cast.train(training)
        with torch.set_grad_enabled(training):
            expected, logits = model(images), cast(images.to(dtype))
        assert logits.dtype == dtype
        assert distance(logits, expected) < 1.4 * noise + 4 * TYPES[dtype]
    expected.square().mean().backward()
    logits.square().mean().backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {name: parameter.grad for name, parameter in cast.named_parameters()}
    for name, gradient in found.items():
        assert (gradient is None) == (wanted[name] is None), name
        assert gradient is None or (gradient.dtype == dtype and bool(torch.isfinite(gradient).all())), name
    one, other = (
        torch.cat([g.flatten().float() for g in gradients.values() if g is not None]) for gradients in (found, wanted)
    )
    assert torch.cosine_similarity(one, other, dim=0) > 0.9


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("recipe", list(RECIPES)[:4])
def test_codes_are_the_same_but_for_the_rounding_of_weights_and_steps(tiny_vit, images, recipe, dtype):
    model = quantized(tiny_vit, images, recipe)
    cast = dict(weight_sites(copy.deepcopy(model).to(dtype)))
    for name, site in weight_sites(model):
        one, other = site.encode_weight(), cast[name].encode_weight()
        assert one.grid.range == other.grid.range
        assert other.step.dtype == torch.float32
        assert torch.allclose(one.step, other.step, rtol=2 * TYPES[dtype], atol=1e-7)
        assert int((one.codes.int() - other.codes.int()).abs().max()) <= 1, name
        assert torch.equal(cast[name].quantized_weight(), other.decode().to(dtype)), name


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_state_dict_comes_back_in_its_own_type_and_in_float32(tiny_vit, images, recipe):
    original, blank = copy.deepcopy(tiny_vit), copy.deepcopy(tiny_vit)
    model = quantized(tiny_vit, images, recipe)
    apply_plan(blank, describe(model, model.plan))
    again = copy.deepcopy(blank).bfloat16()
    state = model.bfloat16().state_dict()
    again.load_state_dict(state)
    blank.load_state_dict(state)
    with torch.no_grad():
        logits = model(images.bfloat16())
        assert torch.equal(again(images.bfloat16()), logits)
        noise = distance(original(images), logits)
        assert distance(blank(images), logits) < 1.4 * noise + 4 * TYPES[torch.bfloat16]
