"""The result of ``ofqctl compare``."""

from typing import Literal

from ofqctl.results.analyze_oscillation import Epoch
from ofqctl.results.document import Document, Part


class ComparedRun(Part):
    """One run; fields are null if its files do not contain the value.

    Attributes:
        run: Path of the run directory.
        model: timm's architecture.
        recipe: Name of the recipe.
        weight_bits: Bits of the weights of every layer that is neither first nor last; 32 for float.
        activation_bits: Bits of the activations of these layers.
        bytes: Size of ``model.safetensors``.
        top1: Accuracy in percent.
        measured_on: Data that ``top1`` was measured on.
        oscillating: Share of the weights that oscillate, at the end of training.
        flips_per_step: Share of the codes that change in an optimizer step, mean of the last 30.
        seconds: Time spent in optimizer steps.
        seed: Seed of random weights, order and augmentation.
        epochs: Rows of its training summary, one for each epoch.
    """

    run: str
    model: str
    recipe: str
    weight_bits: int
    activation_bits: int
    bytes: int
    top1: float | None = None
    measured_on: str | None = None
    oscillating: float | None = None
    flips_per_step: float | None = None
    seconds: float | None = None
    seed: int | None = None
    epochs: tuple[Epoch, ...] = ()


class Comparison(Document):
    """Several runs.

    Attributes:
        runs: The runs in the order in which they were named.
    """

    command: Literal["compare"] = "compare"
    runs: tuple[ComparedRun, ...]
