"""Detect evaluation images that are also calibration images, by their pixels."""

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from torch import Tensor

from ofqctl.ptq import Batches


class Watched:
    """Passes labelled batches on unchanged, and counts images that are also calibration images.

    Args:
        labelled: Images (B, 3, H, W) and labels (B,), preprocessed like the calibration images.
        calibration: The calibration images.

    Attributes:
        images: Number of images passed on so far.
        shared: Number of these that are calibration images.
    """

    def __init__(self, labelled: Iterable[tuple[Tensor, Tensor]], calibration: Batches) -> None:
        self._labelled = labelled
        self._known = {_digest(image) for batch in calibration for image in batch}
        self.images = self.shared = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self._labelled:
            self.images += len(images)
            self.shared += sum(_digest(image) in self._known for image in images)
            yield images, labels

    @property
    def notes(self) -> list[str]:
        """A warning if images are shared."""
        if not self.shared:
            return []
        return [
            f"calibration: {self.shared} of the {self.images} images measured on are calibration images: "
            "the accuracy is better than on unseen images"
        ]


def _digest(image: Tensor) -> bytes:
    return blake2b(image.cpu().contiguous().numpy().tobytes(), digest_size=16).digest()
