"""What the results of all commands that write a run have: the model, its bits and sizes, and what stayed in float."""

from typing import Any

from ofqctl.recipe.plan import LeftFloat
from ofqctl.results.document import Document, Gives, Part
from ofqctl.results.size import Ledger


class Bits(Part):
    """Bits of weights and activations; 32 for float."""

    weights: int
    activations: int


class ModelBits(Part):
    """Bits of the quantizers of a model; 32 for float.

    Attributes:
        first: Those of the first layer.
        last: Those of the last layer.
        weights: Bits of the weights of all other layers; their average in mixed precision.
        activations: Bits of the activations of all other layers; their average in mixed precision.
    """

    first: Bits
    last: Bits
    weights: int | float
    activations: int | float


class AboutRun(Part):
    """The model in a run.

    Attributes:
        model: timm's architecture.
        gives: What it gives for an image.
        source: Where the float weights came from.
        recipe: Name of the recipe.
        bits: Bits of the quantizers.
        size: What the bytes of the weights' file are used for.
        quantized_modules: Number of quantized modules.
        left_float: Modules that stayed in float, or whose products did, and why.
    """

    model: str
    gives: Gives
    source: str
    recipe: str
    bits: ModelBits
    size: Ledger
    quantized_modules: int
    left_float: tuple[LeftFloat, ...]


class RunResult(AboutRun, Document):
    """The result of a command that wrote a run.

    Attributes:
        output: Path of the run directory; None if it was not written.
    """

    output: str | None = None

    def stored(self) -> dict[str, Any]:
        """The content of ``results.json``."""
        return self.model_dump(mode="json", exclude={"format", "command", "output"})
