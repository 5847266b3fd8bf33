"""The built-in data: scikit-learn's 1797 handwritten digits, which need no files and no network."""

from ofqctl.data.sources.classes import ClassNames
from ofqctl.data.sources.source import Record, Source
from ofqctl.data.sources.splits import choose_split, find_split
from ofqctl.data.spec import Purpose

_TRAIN_IMAGES = 1437
_SPLITS = ("train", "test")


def open_digits(split: str | None, purpose: Purpose) -> Source:
    """Open the digits 0..9 as 8x8 RGB images, stratified into 1437 to train on and 360 to test on.

    Args:
        split: 'train', or 'test' (also called 'val'); None chooses by ``purpose``.
        purpose: What they are opened for.

    Raises:
        DataError: There is no such split.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    asked = "test" if split in ("val", "validation", "valid") else split
    chosen = find_split(asked, _SPLITS, "digits") if asked else choose_split(_SPLITS, purpose, "digits")[0]
    digits = load_digits()
    parts = train_test_split(
        np.arange(len(digits.target)), train_size=_TRAIN_IMAGES, stratify=digits.target, random_state=0
    )
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    records = [
        Record(f"digits[{index}]", Image.fromarray(grey[index]).convert("RGB"), str(digits.target[index]))
        for index in parts[_SPLITS.index(chosen)].tolist()
    ]
    names = tuple(str(digit) for digit in range(10))
    return Source(f"digits/{chosen}", records, ClassNames(names, "digits", "by value", numbered=True), len(names))
