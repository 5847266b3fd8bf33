"""A tiny model, a tiny recipe and labelled images for training in a second."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ofqctl.data import DataSpec
from ofqctl.jobs.train import TrainRequest
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
BASE = [
    "training.batch_size=8",
    "training.phases.0.epochs=2",
    "training.phases.0.warmup_steps=2",
    "training.phases.1.epochs=1",
    "calibration.images=8",
    "calibration.batch_size=8",
]


def _coloured(root: Path, counts: tuple[int, int, int]) -> Path:
    random = np.random.default_rng(0)
    for label, colour in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
        (root / f"class{label}").mkdir()
        for number in range(counts[label]):
            pixels = np.clip(np.array(colour) + random.normal(0, 40, (36, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}" / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """48 images of 3 classes, each with a colour of its own."""
    return _coloured(tmp_path_factory.mktemp("colours"), (16, 16, 16))


@pytest.fixture(scope="session")
def validation_folder(tmp_path_factory) -> Path:
    """97 such images: two batches of validation, of 64 and 33 images."""
    return _coloured(tmp_path_factory.mktemp("validation"), (33, 32, 32))


@pytest.fixture
def request_for(folder, tmp_path):
    """Makes a request to train the tiny model on the colours, into ``tmp_path / name``."""

    def make(name="run", recipe="demo/digits_ofq_w2a2", sets=(), **options) -> TrainRequest:
        float_run = recipe == "demo/digits_float"
        base = [s for s in BASE if not (float_run and s.startswith("training.phases.1"))]
        values = {
            "model": ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=3, kwargs=TINY),
            "recipe": load(recipe, [*base, *sets]),
            "data": DataSpec(str(folder)),
            "output": tmp_path / name,
            "device": "cpu",
        }
        return TrainRequest(**values | options)

    return make
