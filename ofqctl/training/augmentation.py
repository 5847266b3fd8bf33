"""The augmentation of training images, and the random numbers that decide it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.transforms import str_to_interp_mode
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose, Normalize, ToTensor
from torchvision.transforms.functional import hflip, resized_crop

from ofqctl.data import Batch
from ofqctl.data.channels import with_channels
from ofqctl.distill import SoftLabels
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


@dataclass(frozen=True)
class Crop:
    """One crop of a training image.

    Attributes:
        epoch: Number of the epoch, from 0.
        position: Position of the image in the epoch.
        image: Number of the image.
        own: Number of the crop among those of the image.
    """

    epoch: int
    position: int
    image: int
    own: int


class DrawnCrops:
    """Crops that the seed, the epoch and the position decide, augmented by a transform.

    Args:
        transform: From a PIL image to a tensor.
        seed: Seed of the training.
        crops: Number of crops of each image in an epoch.
    """

    def __init__(self, transform: Any, seed: int, crops: int) -> None:
        self.transform, self.seed, self.crops = transform, seed, crops

    def __call__(self, image: Image.Image, crop: Crop) -> Tensor:
        """The crop, (3, H, W)."""
        first = (self.seed * 1_000_003 + crop.epoch) * 10_000_019 + crop.position * self.crops
        with seeded(first + crop.own):
            augmented: Tensor = self.transform(image)
        return augmented


class StoredCrops:
    """The crops that soft labels are of, one after the other from epoch to epoch.

    Args:
        labels: The soft labels.
        config: Preprocessing of the model.
        crops: Number of crops of each image in an epoch.
    """

    def __init__(self, labels: SoftLabels, config: dict[str, Any], crops: int) -> None:
        self.labels, self.crops, self._size = labels, crops, list(config["input_size"][1:])
        self._interpolation = str_to_interp_mode(config["interpolation"])  # type: ignore[no-untyped-call]
        normalized = Compose([ToTensor(), Normalize(tuple(config["mean"]), tuple(config["std"]))])
        self._prepared = with_channels(normalized, config["input_size"][0])

    def number(self, epoch: int, own: int) -> int:
        """Number of a crop among the views of its image."""
        return epoch * self.crops + own

    def __call__(self, image: Image.Image, crop: Crop) -> Tensor:
        """The crop, (3, H, W)."""
        box, mirrored = self.labels.view(crop.image, self.number(crop.epoch, crop.own))
        return self.cut(image, box, mirrored=mirrored)

    def cut(self, image: Image.Image, box: Sequence[int], *, mirrored: bool) -> Tensor:
        """A crop by its box (top, left, height, width in pixels), (3, H, W)."""
        part = resized_crop(image, *box, self._size, self._interpolation)
        return self._prepared(hflip(part) if mirrored else part)

    def answers(self, batch: Batch, epoch: int) -> dict[str, Tensor]:
        """``answers``: the teacher's log-probabilities of the crops of a batch, (B, classes)."""
        own = torch.arange(len(batch)) % self.crops
        return {"answers": self.labels.answers(batch.ids, self.number(epoch, 0) + own)}


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
