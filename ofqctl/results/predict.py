"""The result of ``ofqctl predict``."""

from typing import Literal

from ofqctl.results.data import SkippedImage
from ofqctl.results.document import Document, Part
from ofqctl.results.evaluate import Kind


class Guess(Part):
    """A label with the name of its class, and its probability (0 to 1)."""

    label: int
    name: str
    probability: float


class PredictedImage(Part):
    """The most probable labels of an image, the most probable first."""

    image: str
    top: tuple[Guess, ...]


class PredictResult(Document):
    """The most probable labels of images.

    Attributes:
        model: Name or path of the model.
        kind: Whether it is a ``float`` model by name, a ``run`` or an ``onnx`` file.
        recipe: Name of its recipe; None for a float model, and where the file does not say.
        images: The images in their order.
        skipped: Images that could not be used.
        saved_logits: Path of the file with the logits, if they were asked for.
        turned: Number of images that were turned upright, as their EXIF orientation says.
        device: Device that it was computed on.
    """

    command: Literal["predict"] = "predict"
    model: str
    kind: Kind
    recipe: str | None
    images: tuple[PredictedImage, ...]
    skipped: tuple[SkippedImage, ...]
    saved_logits: str | None
    turned: int
    device: str
