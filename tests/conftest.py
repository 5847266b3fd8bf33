"""Small models and the real data that tests share."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from ofqctl.convert import convert
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load

torch.set_num_threads(1)  # small models gain nothing from more, and a busy machine makes them wait for each other

SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def shared() -> Path:
    """The folder of real weights, images and reference outputs; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the folder of real data, ../shared, is not here")
    return SHARED


@pytest.fixture
def tiny_vit() -> nn.Module:
    """A ViT with 2 blocks, width 48 and 10 classes for images of 32 pixels, random weights, in evaluation mode."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY).eval()


@pytest.fixture
def images() -> Tensor:
    """(4, 3, 32, 32)."""
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def quantized(tiny_vit: nn.Module, images: Tensor) -> Callable[..., nn.Module]:
    """``quantized("ofq/vit_w2a2", "weights.bits=3")``: the tiny ViT converted, calibrated, in training mode."""

    def build(recipe: str = "ofq/vit_w2a2", *assignments: str) -> nn.Module:
        plan = convert(tiny_vit, load(recipe, assignments), (3, 32, 32))
        calibrate(tiny_vit, plan, [images])
        return tiny_vit.train()

    return build


@pytest.fixture
def backward(images: Tensor) -> Callable[[nn.Module, int], None]:
    """Gradients of the cross entropy on images that differ from step to step."""

    def run(model: nn.Module, step: int) -> None:
        model.zero_grad()
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(step))
        logits = model(images + 0.3 * noise)
        nn.functional.cross_entropy(logits, torch.arange(len(images)) % 10).backward()

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real weights and images; tests are skipped where they are absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip("the folder of real data, ../shared/data, is not here")
    return SHARED / "data"


@pytest.fixture
def torchrun():
    """Runs a script, or ``-m MODULE``, with so many processes as torchrun does; gives how they ended."""

    def run(world, *command):
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
            + [str(word) for word in command],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return run


def pytest_collection_modifyitems(items):
    """Keep the tests of folders that share trained runs on one worker, which trains them once."""
    for item in items:
        if item.path.parent.name in ("diagnosis", "reports"):
            item.add_marker(pytest.mark.xdist_group(item.path.parent.name))
