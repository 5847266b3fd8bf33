"""The result of ``ofqctl analyze-oscillation``.

Every share is a number from 0 to 1. A field is null if the file does not contain what it is computed from; ``missing``
of the checkpoint says why.
"""

from typing import Literal

from ofqctl.results.document import Document, Part
from ofqctl.results.layers import AnalyzedLayer, LiveWeights, Named, Quantiles, Role, Summary


class Epoch(Part):
    """The relevant fields of a row of the training summary."""

    phase: str
    epoch: int
    step: int
    oscillating: float | None = None
    flips_per_step: float | None = None
    moved: float | None = None
    signs_moved: float | None = None
    magnitudes_moved: float | None = None
    val_top1: float | None = None


class RoleHistory(Part):
    """One role over training; a value for each step of the history.

    Attributes:
        step: Mean grid step, relative to the first value.
        oscillating: Share of the weights that oscillate.
        flips_per_step: Share of the codes that flip in an optimizer step, mean since the previous value.
    """

    step: tuple[float, ...]
    oscillating: tuple[float, ...]
    flips_per_step: tuple[float, ...]


class History(Part):
    """Records of the tracker at up to 256 evenly spaced optimizer steps."""

    steps: tuple[int, ...]
    roles: dict[Role, RoleHistory]


class Path(Part):
    """The trajectory of one sampled weight.

    Attributes:
        name: Name of its module.
        role: Role of its layer.
        index: Index in the flattened weight.
        thresholds: Positions at which its code changes, within its range.
        first_step: Optimizer step of the first value.
        position: Continuous code of the latent value after each step; a grid point is at its code.
        code: Code after each step.
    """

    name: str
    role: Role
    index: int
    thresholds: tuple[float, ...]
    first_step: int
    position: tuple[float, ...]
    code: tuple[int, ...]


class Report(Part):
    """One checkpoint.

    Attributes:
        path: Path of the file or run.
        kind: Kind of the file.
        model: timm's architecture, if the file or its run contains it.
        recipe: Name of the recipe.
        steps: Number of optimizer steps tracked.
        threshold: Frequency above which a weight oscillates.
        boundary_range: Largest distance to a threshold, in grid steps, at which a weight is not confident.
        missing: Which results this file cannot give, and why.
        total: Figures of all layers together.
        roles: Figures of the layers of each role together.
        layers: Every layer, in the order of the model.
        epochs: Summary of the training, if the file contains it.
        annealing: Names of the recipe's phases with confidence-guided annealing.
        history: History, if the tracker recorded one.
        paths: Trajectories of the sampled weights that flipped most, at most ``top``.
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
    layers: tuple[AnalyzedLayer, ...]
    epochs: tuple[Epoch, ...] = ()
    annealing: tuple[str, ...] = ()
    history: History | None = None
    paths: tuple[Path, ...] = ()


class LayerChange(Named):
    """Changes of one layer from one checkpoint to the next.

    Attributes:
        codes_changed: Share of the codes that differ.
        distance: Mean difference of the codes that differ, in codes.
        step_drift: Quantiles over the channels of the new grid step divided by the old one, minus 1.
    """

    codes_changed: float
    distance: float
    step_drift: Quantiles


class Change(Part):
    """Changes of all layers from one checkpoint to the next.

    Attributes:
        before: Path of the earlier checkpoint.
        after: Path of the later checkpoint.
        codes_changed: Share of all codes that differ.
        trend: Whether that is more or less than between the previous two checkpoints; null for the first pair.
        roles: Share of the codes that differ, by role.
        layers: Every layer.
    """

    before: str
    after: str
    codes_changed: float
    trend: Literal["more", "less", "equal"] | None
    roles: dict[Role, float]
    layers: tuple[LayerChange, ...]


class LiveLayer(Named, LiveWeights):
    """Results of live steps for the weights of one layer."""


class LiveActivation(Part):
    """Results of live steps for one activation quantizer.

    Attributes:
        name: Name of the module.
        operand: Name of the operand.
        bits: Bits of a code.
        changed: Share of the codes on the probe batch that differ from the previous step, mean over all steps.
    """

    name: str
    operand: str
    bits: int
    changed: float


class LiveStep(Part):
    """Results for the whole model at one live step; shares as in :class:`LiveLayer` and :class:`LiveActivation`."""

    loss: float
    flips: float
    sign_agreement: float | None
    activations_changed: float | None


class Live(Part):
    """Results of live steps: optimizer steps from a checkpoint that are not saved.

    Attributes:
        data: Name of the training images.
        phase: Name of the recipe's phase.
        lr: Learning rate at the last step.
        batch_size: Number of images in an optimizer step.
        probe_images: Number of images in the fixed batch on which activation codes are compared.
        total: Figures of all weights together.
        activations_changed: Share of all activation codes that change in a step.
        layers: Every layer.
        activations: Every activation quantizer.
        steps: Every step.
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


class Finding(Part):
    """A finding, in words.

    Attributes:
        text: The finding, with figures.
        advice: What to do about it, or why nothing needs to be done.
        option: The recipe option for that, such as ``training.phases.N.cga``, or null.
    """

    text: str
    advice: str
    option: str | None = None


class Gate(Part):
    """A limit, for use in pipelines.

    Attributes:
        figure: ``oscillating`` or ``flips_per_step``.
        limit: Largest share allowed in any layer.
        layer: The layer with the largest share.
        value: Its share.
        met: Whether that share is within the limit.
    """

    figure: Literal["oscillating", "flips_per_step"]
    limit: float
    layer: str
    value: float
    met: bool


class Analysis(Document):
    """The result of an analysis.

    Attributes:
        checkpoints: The checkpoints in the order in which they were named.
        changes: Changes from each checkpoint to the next.
        live: Results of live steps; null without ``--data``.
        findings: Findings on the last checkpoint, most important first.
        gates: Results of ``--max-oscillating`` and ``--max-flip-rate``.
    """

    command: Literal["analyze-oscillation"] = "analyze-oscillation"
    checkpoints: tuple[Report, ...]
    changes: tuple[Change, ...] = ()
    live: Live | None = None
    findings: tuple[Finding, ...] = ()
    gates: tuple[Gate, ...] = ()
