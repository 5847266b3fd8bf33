"""Gradients of rounding are those of the formula, on any grid; values are codes."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError

from ofqctl.layers import weight_sites
from ofqctl.recipe.training import Training
from ofqctl.remedies.stableqat import SmoothGradients, StableQAT


def slope_by_definition(position, amplitude):
    """Of a position between the outermost bins, with ``round`` of the position itself."""
    position = position.double()
    wave = amplitude * math.sqrt(2) * math.pi * torch.cos(math.pi * (position + position.round()))
    return ((1 - wave) / (1 + wave)).float()


@pytest.mark.parametrize("recipe", [("lsq",), ("statsq",), ("ofq/vit_w2a2",)])
def test_a_step_has_the_plain_gradients_times_the_slope(quantized, backward, recipe):
    model = quantized(*recipe)
    plain, leaves = copy.deepcopy(model), {}
    remedy = SmoothGradients(model, StableQAT(), steps=1)
    backward(model, 0)
    for name, site in weight_sites(plain):
        leaf = site.latent().detach().requires_grad_()
        value = site.weight_quantizer(leaf)
        site.quantized_weight = lambda value=value: value
        leaves[name] = site, leaf
    backward(plain, 0)
    for site, leaf in leaves.values():
        encoded = site.encode_weight()
        position = encoded.grid.position(leaf.detach() / encoded.step)
        low, high = encoded.grid.range.low - 0.5, encoded.grid.range.high + 0.5
        inside = (position > low) & (position < high)
        steered = torch.where(inside, slope_by_definition(position, 0.21), 1.0) * leaf.grad
        parameters = site.latent_parameters()
        gradients = torch.autograd.grad(site.latent(), parameters, steered)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    for (name, found), (_, expected) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-7, msg=name)
    remedy.close()


def test_values_are_codes_and_closing_ends_it(quantized, backward):
    model = quantized("lsq")
    site = model.blocks[0].mlp.fc1
    backward(model, 0)
    before = site.weight.grad.clone()
    remedy = SmoothGradients(model, StableQAT(), steps=1)
    assert torch.equal(site.quantized_weight(), site.encode_weight().decode())
    backward(model, 0)
    assert not torch.equal(site.weight.grad, before)
    remedy.close()
    backward(model, 0)
    assert torch.equal(site.weight.grad, before)


def test_without_a_wave_gradients_pass_straight_through(quantized, backward):
    model = quantized("statsq")
    backward(model, 0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    remedy = SmoothGradients(model, StableQAT(amplitude=0.0), steps=1)
    backward(model, 0)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())
    remedy.close()


def test_the_slope_is_small_at_the_centre_of_a_bin_and_whole_at_a_threshold():
    slope = slope_by_definition(torch.tensor([0.0, 1.0, 0.4999, -0.4999]), 0.21)
    torch.testing.assert_close(slope, torch.tensor([0.0347, 0.0347, 1.0, 1.0]), atol=1e-3, rtol=0.0)


def test_an_amplitude_whose_slope_has_a_pole_is_refused():
    with pytest.raises(ValidationError, match="less than 0"):
        StableQAT(amplitude=0.23)
    with pytest.raises(ValidationError, match="stableqat acts on quantized weights"):
        Training(phases=({"quantized": "none", "stableqat": {}},))
