"""The result of ``ofqctl distill-cache``."""

from typing import Literal

from ofqctl.results.data import SkippedImage
from ofqctl.results.document import Document


class DistillCacheResult(Document):
    """Soft labels that were written.

    Attributes:
        output: Path of the file.
        teacher: Name of the teacher.
        recipe: Name of the recipe that says how crops are drawn.
        data: Name of the images.
        images: Number of images.
        views: Number of crops of each.
        top: Number of classes whose probability is stored.
        covered: Mean sum of the stored probabilities; the rest is spread evenly over the other classes.
        bytes: Size of the file.
        skipped: Images that could not be used.
        seconds: Time that it took.
    """

    command: Literal["distill-cache"] = "distill-cache"
    output: str
    teacher: str
    recipe: str
    data: str
    images: int
    views: int
    top: int
    covered: float
    bytes: int
    skipped: tuple[SkippedImage, ...]
    seconds: float
