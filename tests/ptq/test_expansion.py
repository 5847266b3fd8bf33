"""Sensitivities from gradients, against plain loops over modules and images."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ofqctl.convert import convert
from ofqctl.errors import RecipeError
from ofqctl.ptq import calibrate, on_disk
from ofqctl.ptq.sensitivity import sensitivities
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)
NAMES = ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "blocks.1.mlp.fc2", "head"]


@pytest.fixture
def converted(lively_vit, images):
    original = copy.deepcopy(lively_vit)
    plan = convert(lively_vit, load("ptq/mse", ["weights.bits=3", "activations.bits=3"]), SIZE)
    calibrate(lively_vit, plan, [images])
    return original, lively_vit, plan


def found_by(model, plan, images, **options):
    with on_disk([images], torch.device("cpu")) as stored:
        return {s.module: s.damage for s in sensitivities(model, plan, 3, stored, **options)}


def plain(original, model, name, images, part, *, first_order):
    """The terms of one module, one image after the other, from the float model's own gradients."""
    layer, quantized = original.get_submodule(name), model.get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    weight_noise = (quantized.weight_quantizer(layer.weight) - layer.weight).detach()
    first, second = [], []
    for image in images:
        seen = []
        with layer.register_forward_pre_hook(lambda _m, args, kept=seen: kept.append(args[0])):
            logits = original(image[None].clone().requires_grad_())
        seen[0].retain_grad()
        input_noise = (quantized.input(seen[0].detach()) - seen[0]).detach()
        drawn = int(torch.multinomial(logits.detach().softmax(1), 1, generator=generator))
        for target, terms in ((drawn, second), (int(logits.argmax()), first)):
            original.zero_grad()
            seen[0].grad = None
            F.cross_entropy(logits, torch.tensor([target])).backward(retain_graph=True)
            products = []
            if part != "activations":
                products.append(layer.weight.grad * weight_noise)
            if part != "weights":
                products.append(seen[0].grad * input_noise)
            squared = sum(float(p.square().sum()) for p in products) / 2
            terms.append(squared if terms is second else sum(float(p.sum()) for p in products))
    change = sum(second) / len(images)
    if first_order and sum(first[::2]) * sum(first[1::2]) > 0:
        change += sum(first) / len(images)
    return change


@pytest.mark.parametrize("part", ["all", "weights", "activations"])
@pytest.mark.parametrize("measure", ["fisher", "gradient"])
def test_an_estimate_is_that_of_a_plain_loop(converted, images, part, measure):
    original, model, plan = converted
    found = found_by(model, plan, images, part=part, measure=measure)
    for name in NAMES:
        expected = plain(original, model, name, images, part, first_order=measure == "gradient")
        assert found[name] == pytest.approx(expected, rel=1e-4), name
    assert set(found) == {name for name in plan.modules if part != "weights" or "attn" not in name.rsplit(".", 1)[-1]}


def test_the_first_order_term_is_the_change_of_the_loss_under_little_noise(converted, images):
    original, *_ = converted
    wide = copy.deepcopy(original)
    plan = convert(wide, load("ptq/minmax"), SIZE)
    calibrate(wide, plan, [images])
    with on_disk([images], torch.device("cpu")) as stored:
        both = {m: sensitivities(wide, plan, 8, stored, part="weights", measure=m) for m in ("gradient", "fisher")}
    first = {g.module: g.damage - f.damage for g, f in zip(both["gradient"], both["fisher"], strict=True)}
    with torch.no_grad():
        logits = original(images)
        before = F.cross_entropy(logits, logits.argmax(1))
        for name in ("blocks.0.mlp.fc1", "blocks.1.mlp.fc2"):
            alone = copy.deepcopy(original)
            alone.get_submodule(name).weight.copy_(wide.get_submodule(name).quantized_weight())
            change = float(F.cross_entropy(alone(images), logits.argmax(1)) - before)
            assert first[name] == 0 or first[name] == pytest.approx(change, rel=0.05)
    assert any(first.values())


def test_model_and_gradients_are_left_as_they_were(converted, images):
    _, model, plan = converted
    with torch.no_grad():
        before = model(images)
    found_by(model, plan, images, measure="gradient")
    with torch.no_grad():
        assert torch.equal(model(images), before)
    assert all(p.grad is None for p in model.parameters())


def test_embeddings_have_no_first_order_term(lively_vit, images):
    lively_vit.reset_classifier(0)
    plan = convert(lively_vit, load("ptq/minmax", ["weights.bits=3"]), SIZE)
    calibrate(lively_vit, plan, [images])
    with pytest.raises(RecipeError, match="this model gives embeddings"):
        found_by(lively_vit, plan, images, measure="gradient")
    estimated = found_by(lively_vit, plan, images, part="weights", measure="fisher")
    measured = found_by(lively_vit, plan, images, part="weights")
    ranks = [sorted(found, key=found.__getitem__) for found in (estimated, measured)]
    assert all(value > 0 for value in estimated.values())
    assert sum(estimated.values()) == pytest.approx(sum(measured.values()), rel=1.0)
    assert len(set(ranks[0][-4:]) & set(ranks[1][-4:])) >= 2
