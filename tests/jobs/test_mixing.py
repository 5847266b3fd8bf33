"""Bits of each layer from its sensitivity."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ofqctl.convert import convert
from ofqctl.errors import RecipeError
from ofqctl.jobs.mixing import Target, mix_precision
from ofqctl.progress import silent
from ofqctl.ptq import calibrate, on_disk
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def mixed(model, recipe, images, *, batch_size=6, **target):
    with on_disk(images.split(batch_size), torch.device("cpu")) as stored:
        return mix_precision(model, recipe, Target(**target), SIZE, stored, silent)


@pytest.mark.parametrize("measure", ["kl", "fisher"])
def test_sensitivities_are_found_on_the_same_images_whatever_the_batches(tiny_vit, images, measure):
    found = [
        mixed(tiny_vit, load("ptq/mse"), images, batch_size=size, bits=5, candidates=(4, 8), measure=measure)[1]
        for size in (6, 1)
    ]
    one, other = (figures.weights.sensitivities for figures in found)
    assert one.keys() == other.keys()
    for name, widths in one.items():
        assert widths == pytest.approx(other[name], rel=1e-3), name


def test_weights_and_activations_get_their_bits_together(tiny_vit, images):
    recipe, figures = mixed(
        tiny_vit, load("ptq/mse"), images, bits=4, activation_bits=5, candidates=(3, 4, 8), measure="fisher"
    )
    assert figures.weights.average_bits <= 4
    assert figures.activations.average_bits <= 5
    plan = convert(copy.deepcopy(tiny_vit), recipe, SIZE)
    for name, bits in figures.weights.bits.items():
        assert plan.modules[name].weight.bits == bits
    for name, bits in figures.activations.bits.items():
        assert {q.bits for q in plan.modules[name].operands.values()} == {bits}
    assert "blocks.0.attn" in figures.activations.bits
    assert plan.modules["head"].weight.bits == plan.modules["head"].operands["input"].bits == 8
    both = [(a.sensitivities[n][str(b)]) for a in (figures.weights, figures.activations) for n, b in a.bits.items()]
    assert figures.predicted == pytest.approx(sum(both))


def test_what_is_measured_together_is_the_divergence_of_a_model_with_these_bits(tiny_vit, images):
    recipe, figures = mixed(tiny_vit, load("ptq/mse"), images, bits=4, candidates=(2, 3, 8))
    quantized = copy.deepcopy(tiny_vit)
    calibrate(quantized, convert(quantized, recipe, SIZE), [images])
    plain = copy.deepcopy(tiny_vit)
    with torch.no_grad():
        for name in figures.weights.bits:
            plain.get_submodule(name).weight.copy_(quantized.get_submodule(name).quantized_weight())
        ours, theirs = plain(images).log_softmax(1), tiny_vit(images).log_softmax(1)
    expected = F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    assert figures.measured == pytest.approx(float(expected), rel=1e-3)
    assert figures.activations is None


def test_activations_alone_can_get_their_bits(tiny_vit, images):
    recipe, figures = mixed(tiny_vit, load("ptq/mse"), images, activation_bits=4.5, candidates=(4, 8))
    assert figures.weights is None
    assert 4 < figures.activations.average_bits <= 4.5
    assert all(override.weights is None for override in recipe.layers)


def test_without_a_choice_nothing_is_measured(tiny_vit, images):
    recipe = load("ptq/mse", ["layers=[{target: '*', activations: {bits: 4}}]"])
    with pytest.raises(RecipeError, match="`layers` already set the bits of all activations"):
        mixed(tiny_vit, recipe, images, activation_bits=5, candidates=(4, 8))
    with pytest.raises(RecipeError, match="--target-abits: no allocation reaches 3 bits on average; from 4 to 8"):
        mixed(tiny_vit, load("ptq/mse"), images, activation_bits=3, candidates=(4, 8))
