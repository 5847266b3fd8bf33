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
    generator = torch.Generator().manual_seed(seed)
    channels, *size = config["input_size"]
    amplitude = _amplitude(*size)
    mean, std = (torch.tensor(config[key]).view(-1, 1, 1) for key in ("mean", "std"))
    images = torch.stack([_image(amplitude, channels, generator) for _ in range(count)])
    return list(torch.split((images - mean) / std, batch_size))


def _image(amplitude: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """One image (C, H, W) with values in 0..1."""
    height, width = amplitude.shape
    white = torch.randn(channels, height, width, generator=generator)
    components: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * amplitude).real
    if channels != 3:
        values = _MEAN.mean() + components * (_VARIANCES[0] / 3).sqrt()
    else:
        colours = _DIRECTIONS * _VARIANCES.sqrt()
        values = _MEAN.view(3, 1, 1) + torch.einsum("cd,dhw->chw", colours, components)
    return values.clamp(0, 1)


def _amplitude(height: int, width: int) -> Tensor:
    """Gain of each frequency (H, W), proportional to 1/f with unit mean power; the gain of f = 0 is that of f = 1."""
    rows = torch.fft.fftfreq(height, 1 / height).view(-1, 1)
    columns = torch.fft.fftfreq(width, 1 / width).view(1, -1)
    gain = 1 / torch.hypot(rows, columns).clamp(min=1)
    return gain / gain.square().mean().sqrt()
