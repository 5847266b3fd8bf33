"""The result of ``ofqctl evaluate``."""

from typing import Literal

from ofqctl.results.accuracy import Accuracy
from ofqctl.results.data import MeasuredOn
from ofqctl.results.document import Document
from ofqctl.results.embeddings import EmbeddingFigures, Neighbours, PairedEmbeddings

Kind = Literal["float", "run", "onnx"]


class Evaluated(MeasuredOn, Document):
    """A model that was measured.

    Attributes:
        model: Name or path of the model.
        kind: Whether it is a ``float`` model by name, a ``run`` or an ``onnx`` file.
        recipe: Name of its recipe; None for a float model, and where the file does not say.
        device: Device that it was computed on.
        processes: Number of processes that shared the images.
        batch_size: Number of images in one forward pass.
        saved_predictions: Path of the file with a row for each image, if it was asked for.
    """

    command: Literal["evaluate"] = "evaluate"
    model: str
    kind: Kind
    recipe: str | None
    device: str
    processes: int
    batch_size: int
    saved_predictions: str | None


class AtWidth(Accuracy):
    """Figures of the same weights, rounded to another width.

    Attributes:
        wbits: Bits of the weights.
    """

    wbits: int


class EvaluateResult(Accuracy, Evaluated):
    """Figures of a classifier on labelled images.

    Attributes:
        widths: Figures of its weights at the widths that were asked for.
    """

    gives: Literal["classes"] = "classes"
    widths: tuple[AtWidth, ...] = ()


class EvaluateEmbeddingsResult(EmbeddingFigures, Evaluated):
    """Figures of embeddings, beside those of the float model where there is one.

    Attributes:
        float: Figures of the float model on the same images.
        against: Which one that is.
        paired: Their differences; None without labels, or without a float model.
        neighbours: How images were found; None without labels.
    """

    gives: Literal["embeddings"] = "embeddings"
    float: EmbeddingFigures | None
    against: str | None
    paired: PairedEmbeddings | None
    neighbours: Neighbours | None
