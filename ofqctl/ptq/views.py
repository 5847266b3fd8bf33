"""Crops and mirror images of the calibration images: what is fitted to few images fits others better."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

_AREA = 0.35, 1.0  # of a crop, as a share of the image


def views_of(images: Iterable[Tensor], count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The images, and then ``count - 1`` times a random crop of each, half of them mirrored.

    Args:
        images: (B, 3, H, W) each; can be read ``count`` times.
        count: Views of each image, at least 1.
        generator: Decides the crops.

    Returns:
        Batches of the shapes of ``images``.
    """
    yield from images
    size = next(iter(images)).shape[-2:]
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=_AREA, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    for _ in range(count - 1):
        for batch in images:
            seed = int(torch.randint(2**31, (), generator=generator))
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                cropped = torch.stack([crop(image) for image in batch])
            yield cropped
