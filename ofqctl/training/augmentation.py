"""The augmentation of training images, and the random numbers that decide it."""

import random
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform

from ofqctl.data.channels import with_channels
from ofqctl.recipe.training import Augmentation


class seeded:  # noqa: N801
    """Seed the CPU generators, which augmentation uses, within the block; afterwards they continue as before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed % (1 << 63)

    def __enter__(self) -> None:
        self._states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed % (1 << 32))
        torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would also set, slowly, those of devices

    def __exit__(self, *_: object) -> None:
        python, numpy, pytorch = self._states
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _posterized(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The operation of timm, but black for 0 bits, which some policies use and newer releases of Pillow reject."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits >= 1 else Image.new(image.mode, image.size)


auto_augment.NAME_TO_OP.update(dict.fromkeys(("Posterize", "PosterizeIncreasing", "PosterizeOriginal"), _posterized))


def training_transform(config: dict[str, Any], augmentation: Augmentation) -> Any:
    """The augmentation of a training image, from a PIL image to a normalized tensor (3, H, W)."""
    transform = create_transform(
        tuple(config["input_size"]),
        is_training=True,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        color_jitter=augmentation.color_jitter or 0.0,
        auto_augment=augmentation.auto_augment,
        re_prob=augmentation.random_erase,
        re_mode="pixel",
    )
    return with_channels(transform, config["input_size"][0])
