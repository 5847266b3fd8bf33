"""Noise images with the statistics of photographs, for calibration without data."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Mean colour of ImageNet's pixels in 0..1, and their principal colour directions (Krizhevsky et al., 2012,
# section 4.1): brightness carries most of the variance, so channels are strongly correlated.
_MEAN = torch.tensor([0.485, 0.456, 0.406])
_VARIANCES = torch.tensor([0.2175, 0.0188, 0.0045])
_DIRECTIONS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


def synthetic_images(config: Mapping[str, Any], count: int, batch_size: int, seed: int = 0) -> list[Tensor]:
    """Noise images, normalised as the model's data config says.

    Amplitudes fall with 1/f, as in natural images (Field, 1987), and colours follow ImageNet's. Image i depends only on
    ``seed`` and i, not on ``batch_size``. Where there are not 3 channels, each is grey noise of its own.

    Args:
        config: timm's data config: input_size (C, H, W), mean and std.
        count: Number of images, >= 1.
        batch_size: Number of images in a batch, >= 1; the last batch may be smaller.
        seed: Seed of the noise.

    Returns:
        Batches, float32 (B, C, H, W).
    """
    white = white_noise(config, count, torch.Generator().manual_seed(seed))
    return list(torch.split(coloured(config, white), batch_size))


def white_noise(config: Mapping[str, Any], count: int, generator: torch.Generator) -> Tensor:
    """Independent normal numbers in the shape of images, (count, C, H, W)."""
    return torch.stack([torch.randn(*config["input_size"], generator=generator) for _ in range(count)])


def coloured(config: Mapping[str, Any], white: Tensor) -> Tensor:
    """The images that white noise stands for, normalised as the model's data config says; differentiable.

    Args:
        config: timm's data config.
        white: White noise, (B, C, H, W).
    """
    _, channels, *size = white.shape
    components: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * _amplitude(*size).to(white.device)).real
    if channels != 3:
        values = _MEAN.mean() + components * (_VARIANCES[0] / 3).sqrt()
    else:
        colours = (_DIRECTIONS * _VARIANCES.sqrt()).to(white.device)
        values = _MEAN.view(3, 1, 1).to(white.device) + torch.einsum("cd,ndhw->nchw", colours, components)
    mean, std = (torch.tensor(config[key], device=white.device).view(-1, 1, 1) for key in ("mean", "std"))
    return (values.clamp(0, 1) - mean) / std


def _amplitude(height: int, width: int) -> Tensor:
    """Gain of each frequency (H, W), proportional to 1/f with unit mean power; the gain of f = 0 is that of f = 1."""
    rows = torch.fft.fftfreq(height, 1 / height).view(-1, 1)
    columns = torch.fft.fftfreq(width, 1 / width).view(1, -1)
    gain = 1 / torch.hypot(rows, columns).clamp(min=1)
    return gain / gain.square().mean().sqrt()
