"""Gradients are those at the published place uphill, and nothing else changes."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from ofqctl.layers import weight_sites
from ofqctl.quantizers import Quantizer
from ofqctl.remedies.asam import ASAM, SharpnessAware


def uphill_by_definition(model, rho, eta, adaptive):
    """Each parameter's way, from the gradients that are there."""
    own = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    moving = {name: p for name, p in model.named_parameters() if id(p) not in own}
    sizes = {n: (p.detach().abs() + eta if adaptive and "bias" not in n else 1.0) for n, p in moving.items()}
    norm = sum(float(((sizes[n] * p.grad) ** 2).sum()) for n, p in moving.items()) ** 0.5
    return {n: rho * sizes[n] ** 2 * p.grad / norm for n, p in moving.items()}


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("recipe", ["lsq", "ofq/vit_w2a2"])
def test_gradients_are_those_at_the_place_of_the_definition(quantized, backward, recipe, adaptive):
    model = quantized(recipe)
    plain, before = copy.deepcopy(model), {n: p.detach().clone() for n, p in model.named_parameters()}
    remedy = SharpnessAware(model, ASAM(rho=0.3, eta=0.02, adaptive=adaptive), steps=1)
    remedy.gradients(lambda: backward(model, 0))
    backward(plain, 0)
    ways = uphill_by_definition(plain, 0.3, 0.02, adaptive)
    for name, parameter in plain.named_parameters():
        if name in ways:
            parameter.data.add_(ways[name])
    backward(plain, 0)
    for (name, found), (_, expected) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(found, before[name]), name
    assert not torch.equal(plain.head.weight, model.head.weight)


def test_the_way_is_as_long_as_asked_for(quantized, backward):
    model = quantized("lsq")
    seen = []

    def compute():
        backward(model, 0)
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    SharpnessAware(model, ASAM(rho=0.05, adaptive=False), steps=1).gradients(compute)
    ways = {name: seen[1][name] - value for name, value in seen[0].items()}
    assert sum(float(way.square().sum()) for way in ways.values()) ** 0.5 == pytest.approx(0.05, rel=1e-3)
    for name, _ in weight_sites(model):
        assert torch.equal(ways[f"{name.removesuffix('.weight')}.weight_quantizer.step"].abs().sum(), torch.zeros(()))


def test_both_passes_draw_the_same_and_the_first_result_is_returned(quantized, backward):
    model, drawn = quantized("lsq"), []

    def compute():
        backward(model, 0)
        drawn.append((torch.rand(3).tolist(), float(np.random.rand()), random.random()))
        return torch.tensor(len(drawn))

    assert SharpnessAware(model, ASAM(), steps=1).gradients(compute) == 1
    assert drawn[0] == drawn[1]


def test_running_statistics_are_those_of_the_first_pass():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    once, images = copy.deepcopy(model), torch.rand(8, 3)

    def compute(called):
        called.zero_grad()
        loss = called(images).square().mean() + called[0].weight.sum()
        loss.backward()
        return loss.detach()

    SharpnessAware(model, ASAM(), steps=1).gradients(lambda: compute(model))
    compute(once)
    assert int(model[1].num_batches_tracked) == 1
    torch.testing.assert_close(model[1].running_mean, once[1].running_mean)
    torch.testing.assert_close(model[1].running_var, once[1].running_var)


def test_parameters_that_are_not_trained_stay(quantized, backward):
    model = quantized("lsq")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("head"))
    seen = []

    def compute():
        backward(model, 0)
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})

    SharpnessAware(model, ASAM(), steps=1).gradients(compute)
    moved = {name for name, value in seen[0].items() if not torch.equal(seen[1][name], value)}
    assert moved == {"head.weight", "head.bias"}
