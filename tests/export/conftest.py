"""Small runs of every kind of quantization."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from ofqctl.artifact import load_run, save_run, serialize
from ofqctl.convert import convert, describe
from ofqctl.jobs.writing import float_model_bytes, run_config
from ofqctl.models import ModelRequest, load_model
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}


def make_run(directory: Path, recipe: str, *changes: str, model: str = "vit_tiny_patch16_224", **kwargs) -> Path:
    """A run of a small model with random weights, calibrated on noise, every shift and bias drawn at random."""
    torch.manual_seed(0)
    loaded = load_model(ModelRequest(model, pretrained=False, num_classes=10, kwargs=kwargs or TINY))
    recipe_ = load(recipe, list(changes))
    float_bytes = float_model_bytes(loaded.model)
    size = tuple(loaded.data_config["input_size"])
    plan = convert(loaded.model, recipe_, size)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if name.endswith(("bias", "before", "after", "key_term")):
                parameter.normal_(std=0.1)
    calibrate(loaded.model, plan, [torch.randn(4, *size, generator=torch.Generator().manual_seed(1))])
    plan = describe(loaded.model, plan)
    weights = serialize(loaded.model)
    save_run(directory, loaded.model, weights, run_config(loaded, recipe_, plan, weights, float_bytes), {})
    return directory


@pytest.fixture
def run(tmp_path) -> Callable[..., Path]:
    """Makes runs."""
    return lambda recipe, *changes, **kwargs: make_run(tmp_path / "run", recipe, *changes, **kwargs)


@pytest.fixture(scope="session")
def w2a2(tmp_path_factory) -> Path:
    """A run with 2-bit StatsQ weights, shifts, and query and key merged."""
    return make_run(tmp_path_factory.mktemp("runs") / "w2a2", "ofq/vit_w2a2")


@pytest.fixture(scope="session")
def onnxruntime_web() -> Path:
    """The npm package onnxruntime-web, installed under ``.venv/runtimes`` when a test first needs it."""
    if shutil.which("npm") is None:
        pytest.skip("Node.js with npm, which installs onnxruntime-web, is not here")
    folder = Path(sys.prefix) / "runtimes" / "web"
    package = folder / "node_modules" / "onnxruntime-web"
    if not package.exists():
        folder.mkdir(parents=True, exist_ok=True)
        ended = subprocess.run(["npm", "install", "--silent", "--prefix", folder, "onnxruntime-web"], check=False)
        if ended.returncode:
            pytest.skip("npm cannot install onnxruntime-web here")
    return package


@pytest.fixture
def float_vit() -> torch.nn.Module:
    """A float model with the same shapes."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY).eval()


def images_of(directory: Path, count: int = 2) -> torch.Tensor:
    """Noise that a run takes."""
    size = load_run(directory).config.input_size
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(2))
