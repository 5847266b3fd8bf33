"""Weights slide along the staircase of the paper, with the gradients of rounding, and are codes at the end."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ofqctl.grids import CodeRange, Encoded, TableGrid, symmetric_grid, thresholds_of
from ofqctl.layers import weight_sites
from ofqctl.recipe.training import Training
from ofqctl.remedies.parq import Parq, SlidingWeights, slid


def by_definition(weight, points, thresholds, inverse):
    """One weight: between its neighbouring points, by the formula; clipped outside."""
    if weight <= points[0]:
        return points[0]
    if weight >= points[-1]:
        return points[-1]
    index = max(k for k, point in enumerate(points) if point <= weight)
    low, high = points[index], points[index + 1]
    middle = thresholds[index]
    return min(max(middle + (weight - middle) / inverse, low), high)


GRIDS = [
    symmetric_grid(CodeRange.of_bits(2, signed=True)),
    symmetric_grid(CodeRange.of_bits(1, signed=True)),
    TableGrid(CodeRange.of_bits(2, signed=True), torch.tensor([-3.0, -1.0, 0.5, 4.0])),
    TableGrid(CodeRange.of_bits(2, signed=True), torch.tensor([-3.0, -1.0, 0.5, 4.0]), torch.tensor([-1.5, 0.25, 1.0])),
]


@given(
    st.lists(st.floats(-3, 3, width=32, allow_subnormal=False), min_size=1, max_size=12),
    st.floats(0.0625, 1.0),
    st.floats(0.125, 2.0, width=32),
    st.sampled_from(GRIDS),
)
@settings(max_examples=100, deadline=None)
def test_values_are_those_of_the_definition_on_any_grid(weights, inverse, step, grid):
    latent = torch.tensor(weights)
    codes = grid.nearest(latent / step).to(torch.int8)
    found = slid(latent, Encoded(codes, torch.tensor(step), grid), inverse)
    points = (grid.points(grid.range.all()) * step).tolist()
    thresholds = (thresholds_of(grid, grid.points(grid.range.all())) * step).tolist()
    expected = [by_definition(weight, points, thresholds, inverse) for weight in weights]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=3e-5 / inverse)


@pytest.mark.parametrize("recipe", ["lsq", "statsq", "ofq/vit_w2a2"])
def test_a_step_is_that_of_a_model_whose_weights_are_these_values(quantized, backward, recipe):
    model = quantized(recipe)
    plain, grads = copy.deepcopy(model), {}
    remedy = SlidingWeights(model, Parq(start=0.4, end=0.4), steps=10)
    backward(model, 0)
    leaves = {}
    for name, site in weight_sites(plain):
        value = slid(site.latent().detach(), site.encode_weight(), 0.4)
        leaves[name] = value.requires_grad_()
        site.quantized_weight = lambda leaf=leaves[name]: leaf
    backward(plain, 0)
    for name, site in weight_sites(plain):
        del site.quantized_weight
        hard = site.weight_quantizer(site.latent())
        parameters = [*site.latent_parameters(), *site.weight_quantizer.parameters()]
        grads |= dict(zip(parameters, torch.autograd.grad(hard, parameters, leaves[name].grad), strict=True))
    for (name, found), (_, parameter) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        expected = grads.get(parameter, parameter.grad)
        torch.testing.assert_close(found.grad, expected, rtol=1e-5, atol=1e-7, msg=name)
    remedy.close()


def test_an_inverse_slope_of_one_computes_with_clipped_weights_and_none_with_codes(quantized):
    model = quantized("lsq")
    site = model.blocks[0].mlp.fc1
    codes = site.encode_weight()
    ends = (codes.grid.range.low * codes.step, codes.grid.range.high * codes.step)
    remedy = SlidingWeights(model, Parq(), steps=3)
    torch.testing.assert_close(site.quantized_weight(), site.weight.clamp(*ends))
    remedy.after_step()
    between = site.quantized_weight()
    assert not torch.equal(between, codes.decode())
    remedy.after_step()
    assert remedy.inverse_slope == 0.0
    assert torch.equal(site.quantized_weight(), codes.decode())


def test_evaluation_is_always_quantized_and_closing_ends_the_slide(quantized):
    model = quantized("statsq")
    remedy = SlidingWeights(model, Parq(), steps=3)
    sites = [site for _, site in weight_sites(model)]

    def are_codes():
        return [torch.equal(site.quantized_weight(), site.encode_weight().decode()) for site in sites]

    assert not any(are_codes())
    model.eval()
    assert all(are_codes())
    model.train()
    remedy.close()
    assert all(are_codes())


def test_the_inverse_slope_falls_along_a_cosine_and_is_in_the_state(quantized):
    model = quantized("lsq")
    remedy = SlidingWeights(model, Parq(delay=0.2), steps=10)
    slopes = []
    for step in range(10):
        slopes.append(remedy.inverse_slope)
        if step == 5:
            again = SlidingWeights(model, Parq(delay=0.2), steps=10)
            again.load_state_dict(remedy.state_dict())
            assert again.inverse_slope == remedy.inverse_slope
            again.close()
        remedy.after_step()
    expected = [1.0, 1.0] + [(1 + math.cos(math.pi * k / 7)) / 2 for k in range(8)]
    assert slopes == pytest.approx(expected)
    assert Parq().at_end().over(10).at(0) == 0.0


@pytest.mark.parametrize("quantized_parts", ["activations", "none"])
def test_a_phase_with_float_weights_is_refused(quantized_parts):
    with pytest.raises(ValidationError, match=r"parq acts on quantized weights, which 'quantized: .*' leaves in float"):
        Training(phases=({"quantized": quantized_parts, "parq": {}},))
    Training(phases=({"quantized": "weights", "parq": {}},))
