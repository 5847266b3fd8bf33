"""What an analysis says, field by field: the models behind ``analyze-oscillation --json`` and its schema.

Every share is a number from 0 to 1. A field is null where the file does not hold what it follows from; ``missing`` of
the checkpoint says why.
"""

from typing import Literal

from pydantic import Field

from ofqctl.diagnosis.layers import Layer, LiveWeights, Named, Quantiles, Summary
from ofqctl.oscillation import Role
from ofqctl.recipe.plan import Frozen

FORMAT = 1


class Epoch(Frozen):
    """A row of the training's summary, as far as it matters here."""

    phase: str
    epoch: int
    step: int
    oscillating: float | None = None
    flips_per_step: float | None = None
    val_top1: float | None = None


class RoleHistory(Frozen):
    """One role over training, a value for each of the history's steps.

    Attributes:
        step: Mean step of the grid, relative to the first value.
        oscillating: Share of the weights that oscillate.
        flips_per_step: Share of the codes that flip in a step, mean since the value before.
    """

    step: tuple[float, ...]
    oscillating: tuple[float, ...]
    flips_per_step: tuple[float, ...]


class History(Frozen):
    """Training as the tracker saw it, at up to 256 evenly spaced optimizer steps."""

    steps: tuple[int, ...]
    roles: dict[Role, RoleHistory]


class Path(Frozen):
    """The trajectory of one sampled weight.

    Attributes:
        name: Of its module.
        role: Of its layer.
        index: In the flattened weight.
        thresholds: Positions at which its code changes, near the ones it took.
        first_step: Optimizer step of the first value.
        position: Of the latent value among the codes after each step; a point of the grid lies at its code.
        code: After each step.
    """

    name: str
    role: Role
    index: int
    thresholds: tuple[float, ...]
    first_step: int
    position: tuple[float, ...]
    code: tuple[int, ...]


class Report(Frozen):
    """One checkpoint.

    Attributes:
        path: Of the file or run.
        kind: What the file is.
        model: timm's architecture, where the file or its run says so.
        recipe: Name of the recipe.
        steps: Optimizer steps that the tracker has seen.
        threshold: A weight oscillates if its frequency is above this.
        boundary_range: A weight this close to a threshold, in steps, is not confident.
        missing: What cannot be said about this file, and why.
        total: All layers together.
        roles: The layers of each role together.
        layers: One by one, in the order of the model.
        epochs: The training's own summary, where it lies in the file.
        annealing: Names of the recipe's phases with confidence-guided annealing.
        history: Where the tracker recorded one.
        paths: Of the sampled weights that flipped most, at most ``top`` of them.
    """

    path: str
    kind: Literal["training state", "packed codes", "OFQ checkpoint"]
    model: str | None
    recipe: str | None
    steps: int | None
    threshold: float
    boundary_range: float
    missing: dict[str, str]
    total: Summary
    roles: dict[Role, Summary]
    layers: tuple[Layer, ...]
    epochs: tuple[Epoch, ...] = ()
    annealing: tuple[str, ...] = ()
    history: History | None = None
    paths: tuple[Path, ...] = ()


class LayerChange(Named):
    """One layer from one checkpoint to the next.

    Attributes:
        codes_changed: Share of the codes that differ.
        distance: Mean difference of the codes that differ, in codes.
        step_drift: Quantiles over the channels of the new step over the old one, less 1.
    """

    codes_changed: float
    distance: float
    step_drift: Quantiles


class Change(Frozen):
    """All layers from one checkpoint to the next.

    Attributes:
        before: Path of the one.
        after: Path of the other.
        codes_changed: Share of all codes that differ.
        trend: Whether that is more or less than between the two checkpoints before; null for the first pair.
        roles: Share of the codes that differ, by role.
        layers: One by one.
    """

    before: str
    after: str
    codes_changed: float
    trend: Literal["more", "less", "equal"] | None
    roles: dict[Role, float]
    layers: tuple[LayerChange, ...]


class LiveLayer(Named, LiveWeights):
    """The weights of one layer in live steps."""


class LiveActivation(Frozen):
    """One activation quantizer in live steps.

    Attributes:
        name: Of the module.
        operand: Which of its inputs.
        bits: Of a code.
        changed: Share of the codes on the probe batch that differ from the step before, mean of all steps.
    """

    name: str
    operand: str
    bits: int
    changed: float


class LiveStep(Frozen):
    """The whole model at one live step; shares as in :class:`LiveLayer` and :class:`LiveActivation`."""

    loss: float
    flips: float
    sign_agreement: float | None
    activations_changed: float | None


class Live(Frozen):
    """Training steps from a checkpoint, of which nothing was kept.

    Attributes:
        data: Training images.
        phase: Of the recipe.
        lr: Learning rate at the last step.
        batch_size: Images in a step.
        probe_images: Images of the fixed batch on which activation codes are compared.
        total: All weights together.
        activations_changed: All activation codes together.
        layers: One by one.
        activations: Quantizer by quantizer.
        steps: Step by step.
    """

    data: str
    phase: str
    lr: float
    batch_size: int
    probe_images: int
    total: LiveWeights
    activations_changed: float | None
    layers: tuple[LiveLayer, ...]
    activations: tuple[LiveActivation, ...]
    steps: tuple[LiveStep, ...]


class Finding(Frozen):
    """Something found, in plain words.

    Attributes:
        text: What, with its figures.
        advice: What would address it, or why nothing has to.
        option: The recipe option that does, such as ``training.phases.N.cga``, or null.
    """

    text: str
    advice: str
    option: str | None = None


class Gate(Frozen):
    """A limit that a pipeline sets.

    Attributes:
        figure: ``oscillating`` or ``flips_per_step``.
        limit: Largest share allowed in any layer.
        layer: The layer with the largest.
        value: Its share.
        met: Whether the largest is not above the limit.
    """

    figure: Literal["oscillating", "flips_per_step"]
    limit: float
    layer: str
    value: float
    met: bool


class Analysis(Frozen):
    """The whole result.

    Attributes:
        format: Of this document; it changes when a field is taken away or means something else.
        checkpoints: In the order they were named.
        changes: From each to the next.
        live: With ``--data``.
        findings: Of the last checkpoint, most telling first.
        gates: With ``--max-oscillating`` and ``--max-flip-rate``.
        notes: What was assumed on the way.
    """

    format: int = Field(default=FORMAT, ge=1)
    checkpoints: tuple[Report, ...]
    changes: tuple[Change, ...] = ()
    live: Live | None = None
    findings: tuple[Finding, ...] = ()
    gates: tuple[Gate, ...] = ()
    notes: tuple[str, ...] = ()
