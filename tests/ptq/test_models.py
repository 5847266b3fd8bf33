"""Every stage on the shapes of other families: windows, separate biases, rotary embeddings, convolutions."""

import copy

import pytest
import timm
import torch

from ofqctl.ptq import on_disk, quantize_post_training
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.reading import build

SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "patch_size": 8}
TRANSFORMERS = {
    "deit_small_distilled_patch16_224": SMALL,
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": SMALL,
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
}
MODELS = TRANSFORMERS | {"mobilevit_xxs": {"img_size": 64}}
STEPS = (
    {"stage": "layer_norm"},
    {"stage": "kv_smoothing"},
    {"stage": "rotation", "residual": True},
    {"stage": "softmax"},
    {"stage": "gptaq"},
    {"stage": "erq"},
    {"stage": "reconstruct", "iterations": 3, "batch_size": 2, "views": 12},
    {"stage": "evolq", "passes": 1, "cycles": 1},
)


@pytest.mark.parametrize(
    "name", [n if n != "mobilevit_xxs" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_every_step_runs_and_the_model_computes(name):
    torch.manual_seed(0)
    kwargs = dict(MODELS[name])
    side = kwargs.pop("img_size") if name == "mobilevit_xxs" else kwargs["img_size"]
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    images = torch.randn(6, 3, side, side)
    recipe = build(load("ptq/best", ["weights.bits=4", "activations.bits=4"]).model_dump() | {"ptq": STEPS}, where="x")
    quantized = copy.deepcopy(model)
    with on_disk(images.split(3), torch.device("cpu")) as stored, torch.random.fork_rng():
        task = quantize_post_training(quantized, recipe, (3, side, side), stored)
    with torch.no_grad():
        assert torch.isfinite(quantized(images)).all()
    assert len(task.figures["evolq"]["searched"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["swin_tiny_patch4_window7_224", "deit_small_patch16_224", "beit_base_patch16_224", "eva02_tiny_patch14_224"],
)
def test_every_stage_runs_on_images_of_full_size(name):
    torch.manual_seed(0)
    depth = {"depths": (1, 1, 2, 1)} if name.startswith("swin") else {"depth": 2}
    model = timm.create_model(name, **depth).eval()
    images = torch.randn(4, 3, 224, 224)
    recipe = build(load("ptq/best", ["weights.bits=4", "activations.bits=4"]).model_dump() | {"ptq": STEPS}, where="x")
    with on_disk(images.split(2), torch.device("cpu")) as stored:
        quantize_post_training(model, recipe, (3, 224, 224), stored)
    with torch.no_grad():
        assert torch.isfinite(model(images[:1])).all()
