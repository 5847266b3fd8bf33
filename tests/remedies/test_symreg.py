"""Pairs of weights are those of the definition, and get to cancel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ofqctl.convert import convert
from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.recipe.catalogue import load
from ofqctl.remedies.symreg import SymmetryPenalty, SymReg, pair_sums


def by_definition(row, square):
    """Of a list of weights: the smallest with the largest, and so on."""
    row = sorted(row)
    sums = [row[i] + row[-1 - i] for i in range(len(row) // 2)]
    return sum(s**2 if square else abs(s) for s in sums)


def rows_of(latent, pairing):
    if pairing == "full":
        return [latent.flatten().tolist()]
    rows = latent.flatten(1).tolist()
    return [row[start : start + 4] for row in rows for start in range(0, len(row) - 3, 4)]


@pytest.mark.parametrize("distance", ["absolute", "square"])
@pytest.mark.parametrize("pairing", ["full", "2:2"])
@pytest.mark.parametrize("recipe", ["lsq", "ofq/vit_w2a2"])
def test_the_penalty_is_that_of_the_definition(quantized, recipe, pairing, distance):
    model = quantized(recipe)
    remedy = SymmetryPenalty(model, SymReg(start=1.0, end=1.0, pairing=pairing, distance=distance), steps=1)
    expected = sum(
        by_definition(row, distance == "square")
        for _, site in weight_sites(model)
        for row in rows_of(site.latent().detach().double(), pairing)
    )
    assert remedy.penalty().item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("distance", ["absolute", "square"])
def test_each_weight_gets_the_gradient_of_its_pair(quantized, distance):
    model = quantized("lsq")
    SymmetryPenalty(model, SymReg(start=0.5, end=0.5, distance=distance), steps=1).penalty().backward()
    weight = model.blocks[0].attn.proj.weight
    flat = weight.detach().flatten()
    order = flat.argsort()
    partner = torch.empty_like(order)
    partner[order] = order.flip(0)
    sums = flat + flat[partner]
    expected = 0.5 * (2 * sums if distance == "square" else sums.sign())
    torch.testing.assert_close(weight.grad.flatten(), expected, rtol=1e-5, atol=1e-8)


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=15), st.randoms())
@settings(max_examples=50, deadline=None)
def test_symmetric_weights_have_no_penalty_whatever_their_order(values, random):
    weights = [*values, *(-value for value in values)]
    random.shuffle(weights)
    assert torch.equal(pair_sums(torch.tensor(weights, dtype=torch.float32)), torch.zeros(len(values)))
    assert len(pair_sums(torch.tensor([*weights, 7.0]))) == len(values)  # without the one in the middle


def test_pairs_get_to_cancel(quantized):
    model = quantized("lsq")
    weight = model.blocks[1].mlp.fc1.weight
    weight.data.add_(0.01)
    remedy = SymmetryPenalty(model, SymReg(start=1.0, end=1.0, distance="square"), steps=20)
    before, optimizer = float(pair_sums(weight.detach().flatten()).abs().mean()), torch.optim.SGD([weight], lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        remedy.penalty().backward()
        optimizer.step()
        remedy.after_step()
    assert float(pair_sums(weight.detach().flatten()).abs().mean()) < 0.1 * before


def test_depthwise_convolutions_are_left_out_and_nothing_else_is_refused():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 4, 1)
    )
    convert(model, load("lsq", ["calibration.images=1"]), (3, 12, 12))
    assert SymmetryPenalty.sites(model) == [model[0], model[2], model[3]]
    SymmetryPenalty.check(model, SymReg())
    with pytest.raises(RecipeError, match="symreg: leaves depthwise convolutions out"):
        SymmetryPenalty.check(model[1:2], SymReg())
