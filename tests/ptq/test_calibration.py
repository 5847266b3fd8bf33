"""Calibration: what it sets, and what it refuses."""

import pytest
import torch

from ofqctl.convert import convert, operands
from ofqctl.errors import ModelError
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load

SIZE = (3, 32, 32)


def test_batches_give_the_same_ranges_as_all_images_at_once(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)
    calibrate(tiny_vit, plan, [images])
    at_once = {n: b.clone() for n, b in tiny_vit.state_dict().items() if n.endswith((".step", ".offset"))}
    calibrate(tiny_vit, plan, images.split(1))
    assert all(torch.equal(tiny_vit.state_dict()[n], b) for n, b in at_once.items())


def test_activations_are_observed_in_float_with_quantized_weights(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax", ["weights.bits=2", "activations.bits=2"]), SIZE)
    seen = {}
    tiny_vit.blocks[0].mlp.fc1.input.register_forward_hook(lambda _m, args, out: seen.update(same=out is args[0]))
    calibrate(tiny_vit, plan, [images])
    assert seen["same"]
    assert not any(q.observing for n in plan.modules for q in operands(tiny_vit.get_submodule(n)).values())


def test_weights_that_are_not_finite_are_named(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)
    tiny_vit.blocks[1].mlp.fc2.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"blocks\.1\.mlp\.fc2: 1 of its weights"):
        calibrate(tiny_vit, plan, [images])


def test_activations_that_are_not_finite_are_named(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)
    tiny_vit.norm.weight.data.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"head\.input: calibration saw values that are not finite"):
        calibrate(tiny_vit, plan, [images])


def test_an_interrupted_calibration_leaves_no_quantizer_observing(tiny_vit, images):
    plan = convert(tiny_vit, load("ptq/minmax"), SIZE)

    def interrupted():
        yield images
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(tiny_vit, plan, interrupted())
    assert not any(q.observing for n in plan.modules for q in operands(tiny_vit.get_submodule(n)).values())
