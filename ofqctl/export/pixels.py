"""Convert between normalized images and pixels, for graphs that include the normalization."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def normalize(pixels: Tensor, data_config: Mapping[str, Any]) -> Tensor:
    """uint8 (B, 3, H, W) -> normalized float32.

    Args:
        pixels: RGB, 0..255.
        data_config: Data config, with ``mean`` and ``std`` for values in 0..1.
    """
    mean, std = _statistics(data_config)
    return (pixels.float() / 255.0 - mean) / std


def to_pixels(images: Tensor, data_config: Mapping[str, Any]) -> Tensor:
    """The nearest uint8 pixels of normalized images (B, 3, H, W)."""
    mean, std = _statistics(data_config)
    return ((images * std + mean) * 255.0).round().clamp(0, 255).to(torch.uint8)


@contextmanager
def taking_pixels(model: nn.Module, data_config: Mapping[str, Any]) -> Iterator[None]:
    """Within the block, ``model`` takes pixels instead of normalized images."""
    hook = model.register_forward_pre_hook(lambda _, args: (normalize(args[0], data_config),))
    try:
        yield
    finally:
        hook.remove()


def _statistics(data_config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(data_config[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
    return mean, std
