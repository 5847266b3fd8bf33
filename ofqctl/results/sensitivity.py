"""The result of ``ofqctl sensitivity``."""

from typing import Literal

from ofqctl.results.data import CalibratedOn
from ofqctl.results.document import Document, Part


class LayerSensitivity(Part):
    """One layer.

    Attributes:
        layer: Name of the module.
        kl: Divergence of the model's predictions, in nats, by number of bits.
    """

    layer: str
    kl: dict[str, float]


class SensitivityResult(Document):
    """How much the predictions change when one layer alone is quantized.

    Attributes:
        model: timm's architecture.
        recipe: Name of the recipe that says how layers are quantized.
        part: What of a layer was quantized.
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
    bits: tuple[int, ...]
    layers: tuple[LayerSensitivity, ...]
    calibration: CalibratedOn
    plot: str | None
    seconds: float
