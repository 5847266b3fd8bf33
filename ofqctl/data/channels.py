"""Colour images for models with another number of channels."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from ofqctl.errors import DataError


class _InGrey:
    """A transform of grey images, for RGB images; a class, so that loader processes can unpickle it."""

    def __init__(self, transform: Callable[[Image.Image], Tensor]) -> None:
        self.transforms = ["grey", *getattr(transform, "transforms", [transform])]
        self._transform = transform

    def __call__(self, image: Image.Image) -> Tensor:
        return self._transform(image.convert("L"))


def with_channels(transform: Callable[[Image.Image], Tensor], channels: int) -> Callable[[Image.Image], Tensor]:
    """The transform for RGB images of a model that takes so many channels.

    Raises:
        DataError: Photographs have no such number of channels.
    """
    if channels not in (1, 3):
        raise DataError(
            f"the model takes {channels} channels; images are read in colour, or in grey for models with one channel",
            hint="`predict --array FILE.npy` takes prepared values (N, C, H, W); "
            "`quantize` and `sensitivity` without --calib-data calibrate on noise images",
        )
    return transform if channels == 3 else _InGrey(transform)
