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


class EmbeddedImage(Part):
    """The embedding of an image.

    Attributes:
        image: Name of the image.
        features: Length of the embedding: the number of its values.
        length: Its length as a vector.
        nearest: The other image whose embedding is most like it; None if it is alone.
        cosine: Their cosine.
        embedding: Its values; None if they were written to a file.
    """

    image: str
    features: int
    length: float
    nearest: str | None
    cosine: float | None
    embedding: tuple[float, ...] | None


class Predicted(Document):
    """What a model gives for images.

    Attributes:
        model: Name or path of the model.
        kind: Whether it is a ``float`` model by name, a ``run`` or an ``onnx`` file.
        recipe: Name of its recipe; None for a float model, and where the file does not say.
        skipped: Images that could not be used.
        turned: Number of images that were turned upright, as their EXIF orientation says.
        device: Device that it was computed on.
    """

    command: Literal["predict"] = "predict"
    model: str
    kind: Kind
    recipe: str | None
    skipped: tuple[SkippedImage, ...]
    turned: int
    device: str


class PredictResult(Predicted):
    """The most probable labels of images.

    Attributes:
        images: The images in their order.
        saved_logits: Path of the file with the logits, if they were asked for.
    """

    gives: Literal["classes"] = "classes"
    images: tuple[PredictedImage, ...]
    saved_logits: str | None


class PredictEmbeddingsResult(Predicted):
    """The embeddings of images.

    Attributes:
        images: The images in their order.
        saved_embeddings: Path of the file with the embeddings, if they were asked for.
    """

    gives: Literal["embeddings"] = "embeddings"
    images: tuple[EmbeddedImage, ...]
    saved_embeddings: str | None
