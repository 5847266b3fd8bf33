"""A vision transformer small enough to be built in milliseconds, and directories that hold one."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
from safetensors.torch import save_file

ARCHITECTURE = "vit_tiny_patch16_224"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def tiny():
    """A tiny model with 7 classes."""
    return timm.create_model(ARCHITECTURE, num_classes=7, **TINY)


@pytest.fixture
def weights(tiny, tmp_path) -> Path:
    """The tiny model's weights as a file."""
    path = tmp_path / "weights.safetensors"
    save_file(tiny.state_dict(), path)
    return path


@pytest.fixture
def directory(tiny, tmp_path) -> Path:
    """The tiny model in timm's layout, with preprocessing that is not the architecture's own."""
    path = tmp_path / "tiny"
    path.mkdir()
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 7,
        "model_args": TINY,
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 0.8,
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "num_classes": 7,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    (path / "config.json").write_text(json.dumps(config))
    save_file(tiny.state_dict(), path / "model.safetensors")
    return path
