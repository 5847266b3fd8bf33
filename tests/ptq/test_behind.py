"""The part of a float model behind a unit: what it gives, its gradients, and when it cannot be computed alone."""

import copy

import pytest
import timm
import torch
from torch import nn

from ofqctl.convert import convert
from ofqctl.ptq.behind import Behind, classifiers_of, outputs_of
from ofqctl.ptq.units import find_units
from ofqctl.recipe.catalogue import load

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
MODELS = {
    "vit_tiny_patch16_224": SMALL,
    "deit_small_distilled_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
}


def opened(name: str, kwargs: dict, side: int) -> tuple[nn.Module, list[str], torch.Tensor]:
    torch.manual_seed(0)
    model = timm.create_model(name, **{"num_classes": 10, **kwargs}).eval()
    images = torch.randn(3, 3, side, side)
    plan = convert(copy.deepcopy(model), load("ptq/minmax"), (3, side, side))
    return model, [unit.name for unit, _ in find_units(model, plan, images[:2])], images


@pytest.mark.parametrize("name", MODELS)
def test_from_the_output_of_any_unit_the_models_own_outputs_and_features_follow(name):
    model, units, images = opened(name, MODELS[name], MODELS[name]["img_size"])
    behind = Behind(model, units, images[:2])
    assert behind.ends == [unit for unit in units if unit.startswith("head")]
    assert (behind.alone, behind.others) == ([unit for unit in units if not unit.startswith("head")], [])
    outputs, read = outputs_of(model, units, images), []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _m, args: read.append(args[0]))
        for name in classifiers_of(model)
    ]
    with torch.no_grad():
        expected = model(images)
        features = torch.cat(read, 1)
        for hook in hooks:
            hook.remove()
        for number, unit in enumerate(behind.alone):
            assert torch.equal(behind.output(unit, outputs[unit]), expected)
            assert torch.equal(behind.features(unit, outputs[unit]), features)
            later = units[number + 1 : number + 3]
            for found, wanted in zip(behind.outputs(unit, outputs[unit], later), later, strict=True):
                assert torch.equal(found, outputs[wanted])


def test_gradients_flow_back_to_the_unit():
    model, units, images = opened("vit_tiny_patch16_224", SMALL, 32)
    y = outputs_of(model, units, images)["blocks.0"].requires_grad_()
    (found,) = torch.autograd.grad(Behind(model, units, images[:2]).output("blocks.0", y).square().sum(), y)
    with model.blocks[0].register_forward_hook(lambda _m, _a, _o: y):
        (wanted,) = torch.autograd.grad(model(images).square().sum(), y)
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-7)


def test_a_model_without_a_classifier_has_its_embedding_as_features():
    model, units, images = opened("vit_tiny_patch16_224", SMALL | {"num_classes": 0}, 32)
    behind = Behind(model, units, images[:2])
    assert (behind.ends, behind.alone) == ([], ["patch_embed", "blocks.0", "blocks.1"])
    with torch.no_grad():
        assert torch.equal(behind.features("blocks.1", outputs_of(model, units, images)["blocks.1"]), model(images))


def test_a_unit_whose_output_is_not_all_that_is_read_is_told_apart():
    """The second block also reads the patch embedding."""
    model, units, images = opened("vit_tiny_patch16_224", SMALL, 32)
    seen = []
    model.patch_embed.register_forward_hook(lambda _m, _a, output: seen.append(output))
    model.blocks[1].register_forward_hook(lambda _m, _a, out: out + torch.cat([seen[-1][:, :1], seen[-1]], 1))
    behind = Behind(model, units, images[:2])
    assert (behind.alone, behind.others, behind.ends) == (["patch_embed", "blocks.1"], ["blocks.0"], ["head"])
