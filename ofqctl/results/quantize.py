"""The result of ``ofqctl quantize``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ofqctl.results.accuracy import Accuracy, Paired
from ofqctl.results.data import CalibratedOn, MeasuredOn
from ofqctl.results.document import Number, Part
from ofqctl.results.embeddings import ComparedEmbeddings
from ofqctl.results.run import RunResult
from ofqctl.results.sensitivity import OutputMeasure, SensitivityMeasure

CostUnit = Literal["bits on average", "bytes", "ms"]


class Compared(MeasuredOn):
    """The float and the quantized model on the same images.

    Attributes:
        float: Figures of the float model.
        quantized: Figures of the quantized model.
        paired: Their difference, image by image.
    """

    float: Accuracy
    quantized: Accuracy
    paired: Paired


class RowError(Part):
    """Squared error of a layer's inputs, relative to their square, on held-out images.

    Attributes:
        one_step: With one step for all rows.
        rows: With rows relative to their largest value.
    """

    one_step: Number
    rows: Number


class ChosenRows(Part):
    """What the stage ``rows`` found.

    Attributes:
        chosen: Layers whose inputs are quantized row by row.
        errors: Errors of every layer.
    """

    chosen: tuple[str, ...]
    errors: dict[str, RowError]


class SearchImages(Part):
    """Numbers of images: those ``searched`` on, and those ``held_out``."""

    searched: int
    held_out: int


class SearchCurve(Part):
    """What the stage ``evolq`` found: losses ahead of the first pass and after each.

    Attributes:
        searched: On the images searched on.
        held_out: On the images held out.
        images: Their numbers.
    """

    searched: tuple[Number, ...]
    held_out: tuple[Number, ...]
    images: SearchImages


class Folded(Part):
    """What a stage that changes the float model exactly has changed.

    Attributes:
        keys: Attention blocks whose queries and keys were changed.
        values: Attention blocks whose values were changed.
        residual: LayerNorms that read a rotated residual stream as RMSNorms.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    residual: tuple[str, ...] = ()


StageFigures = Annotated[ChosenRows | SearchCurve | Folded | dict[str, Any], Field(union_mode="left_to_right")]
"""Figures of one of this package's stages, or of another's."""


class Spent(Part):
    """What the bits of layers cost.

    Attributes:
        unit: Unit of the costs.
        budget: Largest sum allowed.
        spent: The sum of the chosen ones.
        layers: Cost of each layer at each width.
    """

    unit: CostUnit
    budget: float
    spent: float
    layers: dict[str, dict[str, float]]


class Allocation(Part):
    """Bits of the weights, or of the activations, allocated module by module.

    Attributes:
        bits: Bits of each module.
        average_bits: Their average over all weights, or over all numbers in the activations of one image.
        sensitivities: How far the output is from the float model's, for each module at each width, by ``measure``.
        cost: What they cost.
    """

    bits: dict[str, int]
    average_bits: float
    sensitivities: dict[str, dict[str, float]]
    cost: Spent


class MixedPrecision(Part):
    """Bits allocated module by module, and the figures that led to them.

    Attributes:
        measure: How sensitivities were found: measured (``kl``), or estimated from gradients.
        unit: Their unit. ``kl``: divergence of the predictions, in nats. ``relative_error``: squared error of the
            embeddings, relative to their square.
        weights: Bits of the weights; None if they are the recipe's.
        activations: Bits of the activations; None if they are the recipe's.
        predicted: Sum of the sensitivities at the bits chosen.
        measured: How far the output is when all that got its bits is quantized at once; the rest is float.
        seconds: Time that the sensitivities took.
    """

    measure: SensitivityMeasure
    unit: OutputMeasure
    weights: Allocation | None
    activations: Allocation | None
    predicted: float
    measured: float
    seconds: float


class QuantizeResult(RunResult):
    """A quantized model, and what was measured.

    Attributes:
        calibration: The calibration images.
        evaluation: Figures beside those of the float model; None if nothing was measured.
        ptq: Figures of the stages by their names; a stage of another package has its own.
        mixed_precision: Bits of each module, if there was a target.
        seed: Seed of random weights and of the choice of calibration images.
        device: Device that it was computed on.
        seconds: Time that it took.
    """

    command: Literal["quantize"] = "quantize"
    calibration: CalibratedOn
    evaluation: Compared | ComparedEmbeddings | None
    ptq: dict[str, StageFigures]
    mixed_precision: MixedPrecision | None
    seed: int
    device: str
    seconds: float
