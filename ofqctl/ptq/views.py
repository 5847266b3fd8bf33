"""Random crops and mirror images of the calibration images, so that a fit to few images generalizes better."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

_AREA = 0.35, 1.0  # smallest and largest area of a crop, as a share of the image


def views_of(images: Iterable[Tensor], count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The images themselves, followed by random crops of them (half mirrored) until there are ``count``.

    Args:
        images: Batches of images, (B, 3, H, W) each; can be read any number of times.
        count: Smallest number of views to return.
        generator: Random generator of the crops.

    Returns:
        Batches of the shapes of ``images``; the last may be smaller.
    """
    missing = count
    for batch in images:
        missing -= len(batch)
        yield batch
    size = next(iter(images)).shape[-2:]
    crop = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=_AREA, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
        ]
    )
    while missing > 0:
        for batch in images:
            if missing <= 0:
                break
            seed = int(torch.randint(2**31, (), generator=generator))
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                yield torch.stack([crop(image) for image in batch[:missing]])
            missing -= len(batch)
