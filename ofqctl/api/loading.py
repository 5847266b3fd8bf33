"""``ofqctl.load``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ofqctl.api.module import equipped
from ofqctl.evaluation import open_subject
from ofqctl.models import ModelRequest

if TYPE_CHECKING:
    from ofqctl.api.module import Model


def load(
    name: str | Path,
    *,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    features: bool = False,
    **model_kwargs: Any,
) -> "Model":
    """Load a model.

    Args:
        name: A run directory or the weights file in one; a timm name, ``hf-hub:ORG/NAME`` or ``local-dir:PATH``; or an
            ONNX file, which ONNX Runtime computes.
        checkpoint: Weights of a float model, in place of the pretrained ones.
        pretrained: Whether a float model gets its pretrained weights.
        num_classes: Number of classes of a float model; None keeps that of the weights.
        img_size: Height and width of the images of a float model, in pixels, one number for both or a pair; None keeps
            its own.
        features: Whether the classifier is left out, so that the model gives embeddings.
        **model_kwargs: Further arguments of the architecture of a float model.

    Returns:
        The timm model, (B, 3, H, W) -> (B, classes or features), on the CPU and in evaluation mode, with
        ``preprocess``, ``label_names``, ``recipe`` and ``notes``.

    Raises:
        OfqctlError: There is no such model, or it is damaged.
    """
    path = None if checkpoint is None else Path(checkpoint)
    request = ModelRequest(str(name), path, pretrained, num_classes, img_size, kwargs=model_kwargs, features=features)
    subject = open_subject(request)
    return equipped(subject, None if subject.run is None else subject.run.config.quantization_config.recipe)
