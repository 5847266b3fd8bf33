"""A small quantized model and a training loop for it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ofqctl.convert import convert
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load


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
