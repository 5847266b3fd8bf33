"""The result of ``ofqctl inspect`` for a run."""

from typing import Any, Literal

from ofqctl.recipe.plan import LeftFloat, ModuleKind
from ofqctl.results.document import Document, IfAny, Part
from ofqctl.results.size import LedgerWithRatio


class InspectedGrid(Part):
    """A grid.

    Attributes:
        low: Smallest code.
        high: Largest code.
        offset: Smallest and largest difference of a point to its code, in grid steps.
        points: In place of that, the points of a table, in grid steps.
        thresholds: Where codes change, in grid steps, if not midway between these points.
    """

    low: int
    high: int
    offset: IfAny[tuple[float, float]] = None
    points: IfAny[tuple[float, ...]] = None
    thresholds: IfAny[tuple[float, ...]] = None


class InspectedQuantizer(Part):
    """A quantizer.

    Attributes:
        bits: Width of a code.
        method: Name of the method.
        grid: Its grid.
        step_shape: Shape of the grid step.
        dynamic: Whether each row is quantized relative to its largest value.
        shifts: Whether it has learned shifts.
    """

    bits: int
    method: str
    grid: InspectedGrid
    step_shape: tuple[int, ...]
    dynamic: bool
    shifts: bool


class InspectedWeight(InspectedQuantizer):
    """A quantized weight.

    Attributes:
        shape: Its shape.
        bytes: Size of its packed codes.
    """

    shape: tuple[int, ...]
    bytes: int


class InspectedModule(Part):
    """A quantized module.

    Attributes:
        name: Its name.
        kind: Its kind.
        weight: Its weight; None if that is in float, or if there is none.
        activations: Quantizers of its activations by the names of the operands.
    """

    name: str
    kind: ModuleKind
    weight: InspectedWeight | None
    activations: dict[str, InspectedQuantizer]


class InspectedRole(Part):
    """All quantized modules that do the same in their blocks.

    Attributes:
        modules: How many there are.
        weight_bits: Widths of their weights, ascending; empty if none has any.
        activation_bits: Widths of what they take, ascending.
        weights: Number of their quantized weights.
        bytes: Size of the packed codes of these.
    """

    modules: int
    weight_bits: tuple[int, ...]
    activation_bits: tuple[int, ...]
    weights: int
    bytes: int


class InspectRunResult(Document):
    """A run.

    Attributes:
        run: Path of the run directory, or of the self-describing file.
        model: timm's architecture.
        num_classes: Number of classes.
        input_size: Channels, height and width of the images.
        source: Where the float weights came from.
        recipe: Name of the recipe.
        format_version: Version of the format of the run.
        written_by: Program that wrote it, with its version.
        size: What the bytes are used for.
        roles: Sums over the modules, by what they do: ``qkv``, ``products``, ``proj``, ``fc1``, ``patch``, ...
        modules: Every quantized module, in the order of the model.
        left_float: Modules that stayed in float, or whose products did, and why.
        results: Content of ``results.json``.
    """

    command: Literal["inspect"] = "inspect"
    run: str
    model: str
    num_classes: int
    input_size: tuple[int, int, int]
    source: str
    recipe: str
    format_version: int
    written_by: str
    size: LedgerWithRatio
    roles: dict[str, InspectedRole]
    modules: tuple[InspectedModule, ...]
    left_float: tuple[LeftFloat, ...]
    results: dict[str, Any]
