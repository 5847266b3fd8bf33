"""The result of ``ofqctl sensitivity``."""

from typing import Literal

from ofqctl.results.data import CalibratedOn
from ofqctl.results.document import Document, Part

SensitivityMeasure = Literal["kl", "gradient", "fisher"]
OutputMeasure = Literal["kl", "relative_error"]


class LayerSensitivity(Part):
    """One layer.

    Attributes:
        layer: Name of the module.
        damage: How far the model's output is from the float one, in ``unit``, by number of bits; an estimate may be
            negative.
    """

    layer: str
    damage: dict[str, float]


class SensitivityResult(Document):
    """How much the output changes when one layer alone is quantized.

    Attributes:
        model: timm's architecture.
        recipe: Name of the recipe that says how layers are quantized.
        part: What of a layer was quantized.
        measure: How it was found: measured (``kl``), or estimated from gradients.
        unit: ``kl``: divergence of the predictions, in nats. ``relative_error``: squared error of the embeddings,
            relative to their square.
        bits: The bit-widths tried.
        layers: Every layer, the most sensitive first.
        calibration: The calibration images.
        plot: Path of the plot, if one was asked for.
        seconds: Time that it took.
    """

    command: Literal["sensitivity"] = "sensitivity"
    model: str
    recipe: str
    part: Literal["all", "weights", "activations"]
    measure: SensitivityMeasure
    unit: OutputMeasure
    bits: tuple[int, ...]
    layers: tuple[LayerSensitivity, ...]
    calibration: CalibratedOn
    plot: str | None
    seconds: float
