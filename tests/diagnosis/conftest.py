"""Small runs to be diagnosed: trained with the tracker, and packed."""

import shutil
from pathlib import Path

import pytest
import torch

from ofqctl.data import DataSpec
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
QUICK = [
    "training.phases=[{name: train, epochs: 2, lr: 1.0e-3}, {name: cga, epochs: 1, lr: 1.0e-5, cga: {}}]",
    "training.distillation=null",
    "calibration.images=16",
    "calibration.batch_size=16",
]


def trained(output: Path, recipe: str, *sets: str, on_step=lambda _row, _total: None) -> Path:
    """A run on the digits, 22 steps an epoch."""
    torch.manual_seed(0)
    train(
        TrainRequest(
            model=ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY),
            recipe=load(recipe, [*QUICK, *sets]),
            data=DataSpec("digits"),
            output=output,
            device="cpu",
        ),
        on_step=on_step,
    )
    return output


@pytest.fixture(scope="session")
def halfway(tmp_path_factory) -> Path:
    """A run with the state it had after the first of two epochs at a constant rate, and the tracker of both."""
    output = tmp_path_factory.mktemp("runs") / "halfway"
    kept = output.with_name("last.pt")

    def keep(row, _total):
        if row["step"] == 23:
            shutil.copy(output / "last.pt", kept)

    constant = "training.phases=[{name: train, epochs: 2, lr: 1.0e-3, schedule: constant}]"
    trained(output, "demo/digits_ofq_w2a2", constant, on_step=keep)
    kept.replace(output / "last.pt")
    return output


@pytest.fixture(scope="session")
def _ofq_made(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("runs") / "ofq", "demo/digits_ofq_w2a2", "activations.bits=4")


@pytest.fixture(scope="session")
def _lsq_made(tmp_path_factory) -> Path:
    sets = ("weights.method=lsq", "attention.qkr=false", "training.phases.1.cga=null")
    return trained(tmp_path_factory.mktemp("runs") / "lsq", "demo/digits_ofq_w2a2", *sets)


@pytest.fixture
def ofq_run(_ofq_made, tmp_path) -> Path:
    """StatsQ and query-key reparameterization, CGA in the last epoch."""
    return Path(shutil.copytree(_ofq_made, tmp_path / "ofq"))


@pytest.fixture
def lsq_run(_lsq_made, tmp_path) -> Path:
    """LSQ weights with a fused query-key-value projection, no remedy."""
    return Path(shutil.copytree(_lsq_made, tmp_path / "lsq"))


@pytest.fixture
def packed_run(_ofq_made, tmp_path) -> Path:
    """The first of these without its training state."""
    run = Path(shutil.copytree(_ofq_made, tmp_path / "packed"))
    for name in ("last.pt", "oscillation.safetensors"):
        (run / name).unlink()
    return run


@pytest.fixture(scope="session")
def float_run(tmp_path_factory) -> Path:
    """A float model."""
    output = tmp_path_factory.mktemp("runs") / "float"
    sets = ["training.phases.0.epochs=1"]
    train(
        TrainRequest(
            model=ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY),
            recipe=load("demo/digits_float", sets),
            data=DataSpec("digits"),
            output=output,
            device="cpu",
        )
    )
    return output
