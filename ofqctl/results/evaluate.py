"""The result of ``ofqctl evaluate``."""

from typing import Literal

from ofqctl.results.accuracy import Accuracy
from ofqctl.results.data import MeasuredOn
from ofqctl.results.document import Document

Kind = Literal["float", "run", "onnx"]


class EvaluateResult(MeasuredOn, Accuracy, Document):
    """Figures of a model on labelled images.

    Attributes:
        model: Name or path of the model.
        kind: Whether it is a ``float`` model by name, a ``run`` or an ``onnx`` file.
        recipe: Name of its recipe; None for a float model, and where the file does not say.
        device: Device that it was computed on.
        processes: Number of processes that shared the images.
        batch_size: Number of images in one forward pass.
    """

    command: Literal["evaluate"] = "evaluate"
    model: str
    kind: Kind
    recipe: str | None
    device: str
    processes: int
    batch_size: int
