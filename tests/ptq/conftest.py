"""A model worth reconstructing, and the stages of a recipe run on it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ofqctl.ptq import Clock, Task, on_disk, quantize_post_training
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.reading import build

SIZE = (3, 32, 32)


@dataclass
class Quantized:
    """What post-training quantization made of a model.

    Attributes:
        model: Quantized.
        task: What was done.
        error: Mean squared error of its logits on images it never saw, over the variance of the float ones.
    """

    model: nn.Module
    task: Task
    error: float


@pytest.fixture
def lively_vit(tiny_vit) -> nn.Module:
    """The tiny vision transformer with weights, biases and norms that matter: channels of very unlike ranges."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in tiny_vit.parameters():
            spread = parameter.std() if parameter.numel() > 1 and parameter.std() > 0 else 0.2
            parameter.add_(0.6 * spread * torch.randn(parameter.shape, generator=generator))
        for module in tiny_vit.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.mul_(torch.rand(module.weight.shape, generator=generator) * 3 + 0.1)
    return tiny_vit


@pytest.fixture
def calibration_images() -> Tensor:
    """(24, 3, 32, 32)."""
    return torch.randn(24, *SIZE, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def quantized(lively_vit, calibration_images) -> Callable[..., Quantized]:
    """Quantizes a copy of the lively model with these stages."""
    unseen = torch.randn(64, *SIZE, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        exact = lively_vit(unseen)

    def run(*stages, base="ptq/mse", assignments=(), clock: Clock | None = None, images=None) -> Quantized:
        values = load(base, ["weights.bits=4", "activations.bits=4", *assignments]).model_dump()
        recipe = build(values | {"ptq": list(stages)}, where="test")
        model = copy.deepcopy(lively_vit)
        batches = (calibration_images if images is None else images).split(8)
        with on_disk(batches, torch.device("cpu")) as stored:
            task = quantize_post_training(model, recipe, SIZE, stored, clock=clock)
        with torch.no_grad():
            error = float((model(unseen) - exact).square().mean() / exact.var())
        return Quantized(model, task, error)

    return run
