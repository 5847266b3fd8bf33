"""The value of a quantized weight: always that of its latent weight and its quantizer as they are now."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from ofqctl.convert import convert
from ofqctl.layers import QuantConv2d, QuantLinear, values_kept, weight_sites
from ofqctl.ptq import calibrate
from ofqctl.recipe import ModulePlan, quantizer_plan
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)
RECIPES = {
    "uniform, zero points": ("ptq/mse", ["weights.symmetric=false"]),
    "learned steps": ("lsq", []),
    "merged query and key": ("ofq/vit_w2a2", []),
}


def quantized(model, images, recipe):
    name, assignments = RECIPES[recipe]
    calibrate(model, convert(model, load(name, assignments), SIZE), [images])
    return model


def through_data(tensor):
    tensor.data.add_(0.5 * tensor.abs().max())


def through_numpy(tensor):
    values = tensor.detach().numpy()
    values += 0.5 * abs(values).max()


@pytest.mark.parametrize("change", [through_data, through_numpy])
@pytest.mark.parametrize("recipe", RECIPES)
def test_evaluation_follows_changes_that_leave_no_trace_but_the_values(tiny_vit, images, recipe, change):
    model = quantized(tiny_vit, images, recipe)
    with torch.no_grad():
        model(images)
        for name, site in weight_sites(model):
            latent = [getattr(site, part) for part in site.latent_names if getattr(site, part) is not None]
            own = [*site.weight_quantizer.parameters(), *site.weight_quantizer.buffers()]
            for tensor in (*latent, *own):
                before = site.quantized_weight()
                change(tensor)
                if tensor is getattr(site.weight_quantizer, "offset", None):
                    tensor.data.round_()  # zero points are integers
                assert torch.equal(site.quantized_weight(), site.encode_weight().decode()), name
                assert not torch.equal(site.quantized_weight(), before), name
        logits = model(images)
        through_data(model.blocks[0].mlp.fc1.input.step)
        assert not torch.equal(model(images), logits)
        assert torch.equal(model(images), copy.deepcopy(model)(images))


def test_a_value_is_kept_only_where_nothing_is_said_to_change(tiny_vit, images):
    model = quantized(tiny_vit, images, "learned steps")
    site = model.blocks[0].mlp.fc1
    with torch.inference_mode():
        expected = model(images)
        with values_kept(model):
            assert torch.equal(model(images), expected)
            assert site.quantized_weight() is site.quantized_weight()
    through_data(site.weight)
    assert torch.equal(site.quantized_weight(), site.encode_weight().decode())
    assert not torch.equal(model(images), expected)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("within", ["conversion", "calibration", "evaluation"])
def test_a_model_that_was_made_or_run_under_inference_mode_evaluates_and_trains(tiny_vit, images, recipe, within):
    def context(part):
        return torch.inference_mode() if part == within else nullcontext()

    expected = quantized(copy.deepcopy(tiny_vit), images, recipe)
    name, assignments = RECIPES[recipe]
    with context("conversion"):
        plan = convert(tiny_vit, load(name, assignments), SIZE)
    with context("calibration"):
        calibrate(tiny_vit, plan, [images])
    with context("evaluation"):
        tiny_vit(images)
    with torch.no_grad():
        assert torch.equal(tiny_vit(images), expected(images))
    for model in (tiny_vit, expected):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model.train()(images).square().mean().backward()
        optimizer.step()
    with torch.inference_mode():
        assert torch.equal(tiny_vit.eval()(images), expected.eval()(images))


@pytest.mark.parametrize("method", ["statsq", "lsq", "uniform"])
@pytest.mark.parametrize("layer", [(nn.Linear, QuantLinear, (6, 4)), (nn.Conv2d, QuantConv2d, (6, 4, 3))])
def test_a_layer_built_whole_under_inference_mode_runs_in_and_out_of_it(layer, method):
    original, replacement, sizes = layer
    with torch.inference_mode():
        module = original(*sizes)
        shape = (sizes[1], *[1] * (module.weight.dim() - 1))
        plan = ModulePlan(
            kind="linear" if original is nn.Linear else "conv2d",
            weight=quantizer_plan(method=method, bits=4, step_shape=shape),
            operands={"input": quantizer_plan(method="lsq", bits=8, step_shape=())},
        )
        built = replacement(module, plan).eval()
        x = torch.randn(2, 6) if original is nn.Linear else torch.randn(2, 6, 5, 5)
        inside = built(x)
    with torch.no_grad():
        assert torch.equal(built(x), inside)
    with torch.inference_mode():
        assert torch.equal(built(x), inside)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fixed_codes_take_the_type_of_the_latent_weight_and_give_it_back(tiny_vit, images, recipe):
    model = quantized(tiny_vit, images, recipe).bfloat16()
    for name, site in weight_sites(model):
        codes = site.encode_weight()
        with torch.inference_mode():
            site.fix_codes(codes)
        assert torch.equal(site.quantized_weight(), codes.decode().bfloat16()), name
    x = images.bfloat16().requires_grad_()
    model(x).sum().backward()  # a weight that was put in place under inference mode could not be kept for this
    for name, site in weight_sites(model):
        site.release_codes(for_this_quantizer=True)
        assert site.latent().dtype == torch.bfloat16, name
    assert torch.isfinite(model(images.bfloat16())).all()
