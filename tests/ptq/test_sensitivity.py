"""One module quantized at a time."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ofqctl.convert import convert
from ofqctl.ptq import calibrate, on_disk
from ofqctl.ptq.sensitivity import sensitivities
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)
LOW = ["weights.bits=2", "activations.bits=2"]


@pytest.fixture
def converted(lively_vit, images):
    original = copy.deepcopy(lively_vit)
    plan = convert(lively_vit, load("ptq/mse", LOW), SIZE)
    calibrate(lively_vit, plan, [images])
    return original, lively_vit, plan


def test_it_is_the_divergence_of_a_model_with_that_module_alone(converted, images):
    original, model, plan = converted
    name = "blocks.1.mlp.fc1"
    with on_disk([images], torch.device("cpu")) as stored:
        found = {s.module: s.damage for s in sensitivities(model, plan, 2, stored)}
    alone = copy.deepcopy(original)
    alone.blocks[1].mlp.fc1 = copy.deepcopy(model.blocks[1].mlp.fc1)
    with torch.no_grad():
        p, q = original(images).log_softmax(1), alone(images).log_softmax(1)
    expected = F.kl_div(q, p, log_target=True, reduction="batchmean")
    assert found[name] == pytest.approx(float(expected), rel=1e-3)  # two ways through float32
    assert set(found) == set(plan.modules)


def test_weights_and_activations_can_be_looked_at_by_themselves(converted, images):
    _, model, plan = converted
    with on_disk([images], torch.device("cpu")) as stored:
        found = {
            part: {s.module: s.damage for s in sensitivities(model, plan, 2, stored, part=part)}
            for part in ("weights", "activations", "all")
        }
    assert "blocks.0.attn" not in found["weights"]
    assert "blocks.0.attn" in found["activations"]
    fc2 = [found[part]["blocks.0.mlp.fc2"] for part in ("weights", "activations", "all")]
    assert len(set(fc2)) == 3


def test_the_model_is_left_as_it_was(converted, images):
    _, model, plan = converted
    with torch.no_grad():
        before = model(images)
        with on_disk([images], torch.device("cpu")) as stored:
            sensitivities(model, plan, 2, stored)
        assert torch.equal(model(images), before)
