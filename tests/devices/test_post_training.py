"""Post-training quantization on a device: every registered stage, and what is measured on the way."""

import copy

import pytest
import timm
import torch
from torch import Tensor, nn

from ofqctl.jobs.mixing import Target, mix_precision
from ofqctl.progress import silent
from ofqctl.ptq import on_disk, quantize_post_training
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.recipe.reading import build

CPU = torch.device("cpu")
SIZE = (3, 16, 16)
QUICK = {"reconstruct": {"iterations": 4, "batch_size": 4, "views": 10}, "evolq": {"passes": 1, "population": 4}}
RECIPES = {"products": ("ptq/minmax", ["weights.bits=4", "activations.bits=4"]), "merged": ("ofq/vit_w4a4", [])}


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    kwargs = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **kwargs).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):  # channels of unlike ranges
                module.weight.mul_(torch.rand_like(module.weight) * 3 + 0.1)
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stage", sorted(PTQ_STAGES.methods()))
def test_a_stage_does_on_a_device_what_it_does_on_the_cpu(alike, vit, images, recipe, stage):
    name, sets = RECIPES[recipe]
    settings = load(name, sets).model_dump() | {"ptq": [{"stage": stage, **QUICK.get(stage, {})}]}

    def compute(place, nudge):
        model, seen = copy.deepcopy(vit).to(place), nudge(images).to(place)
        with on_disk(seen.split(4), place) as stored:
            quantize_post_training(model, build(settings, where="test"), SIZE, stored)
        assert all(tensor.device.type == place.type for tensor in model.state_dict().values())
        with torch.no_grad():
            return {"logits": model(seen)}

    alike(compute)


def test_sensitivities_are_those_of_the_cpu(device, vit, images):
    measured = {}
    for place in (device, CPU):
        model = copy.deepcopy(vit).to(place)
        with on_disk(images.to(place).split(4), place) as stored:
            target = Target(bits=5, candidates=(4, 8))
            _, figures = mix_precision(model, load("ptq/minmax"), target, SIZE, stored, silent)
        measured[place] = figures.weights.sensitivities
    for name, widths in measured[CPU].items():
        assert measured[device][name] == pytest.approx(widths, rel=0.05, abs=1e-6), name
