"""Live steps: optimizer steps from a checkpoint that are measured but not saved."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from ofqctl.artifact import RunConfig, read_config
from ofqctl.convert import apply_plan
from ofqctl.data import DataSpec, ImageData, LabelSpace, image_loader, open_data
from ofqctl.devices import DeviceName, denormals_flushed, pick_device, suited_threads
from ofqctl.diagnosis.live import LiveMeter
from ofqctl.diagnosis.opening import Opened
from ofqctl.distill import Teacher
from ofqctl.errors import ArtifactError, OfqctlError
from ofqctl.evaluation import open_subject
from ofqctl.models import ModelRequest, build_architecture, sources
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.training import Distillation, Terms, Training
from ofqctl.remedies import RemedySettings
from ofqctl.results.analyze_oscillation import Live
from ofqctl.training import Checkpoint, Engine, Processes, Share, TrainingBatches
from ofqctl.training.state import Meter, Position

PROBE_IMAGES = 8  # number of images in the fixed batch


@dataclass(frozen=True)
class LiveRequest:
    """A request for live steps.

    Attributes:
        data: Labelled training images.
        steps: Number of optimizer steps.
        device: Device to compute on.
        workers: Number of processes that decode images.
        seed: Seed of order and augmentation.
    """

    data: DataSpec
    steps: int
    device: DeviceName = "auto"
    workers: int = 0
    seed: int = 0


def live_steps(
    opened: Opened, request: LiveRequest, on_step: Callable[[int], None] = lambda _done: None
) -> tuple[Live, list[str]]:
    """Continue training from a checkpoint as its recipe says, at its current learning rate, and measure every step.

    Returns:
        The figures, and notes on what was assumed.

    Raises:
        OfqctlError: The file is not a training state, or data or model cannot be used.
    """
    checkpoint, config = _startable(opened)
    device = pick_device(request.device)
    torch.manual_seed(request.seed)
    plan = Plan.model_validate(checkpoint.plan)
    model = _restored(checkpoint, config, plan).to(device)
    names = None if config.label_names is None else tuple(config.label_names)
    space = LabelSpace(config.num_classes, names) if config.num_classes else None
    data = open_data(request.data, space, "train")
    settings, notes = _settings(checkpoint, data, request.steps)
    share = Share(settings.batch_size)
    batches = TrainingBatches(data, config.data_config, settings, share, seed=request.seed, workers=request.workers)
    teacher, without = _teacher(settings.distillation, config)
    if teacher is None:
        settings = settings.model_copy(update={"distillation": None, "terms": Terms()})
    recipe = Recipe.model_validate(checkpoint.recipe).model_copy(update={"training": settings})
    engine = Engine(model, plan, recipe, batches, teacher and teacher.to(device), Processes(0, 1, device))
    engine.restore(_at_start(checkpoint))
    probe = next(iter(image_loader(data, config.data_config, batch_size=PROBE_IMAGES, limit=PROBE_IMAGES)))[0]
    tracking = opened.tracking
    meter = LiveMeter(model, plan, probe.to(device), momentum=tracking.momentum, threshold=tracking.threshold)
    lr = 0.0
    with denormals_flushed(device), suited_threads(model), closing(meter):
        for row in islice(engine.steps(), request.steps):
            meter.update(row["step_loss"])
            lr = row["lr"]
            on_step(len(meter.steps))
    live = Live(
        data=data.name,
        phase=settings.phases[0].name,
        lr=lr,
        batch_size=settings.batch_size,
        probe_images=len(probe),
        total=meter.total,
        activations_changed=meter.activations_changed,
        layers=meter.layers,
        activations=meter.activations,
        steps=tuple(meter.steps),
    )
    return live, notes + without


def _startable(opened: Opened) -> tuple[Checkpoint, RunConfig]:
    if opened.checkpoint is None:
        raise ArtifactError(
            f"{opened.path}: {opened.kind}: contains no optimizer, latent weights and recipe to continue training with",
            hint="name the last.pt of a training run, or leave out --data",
        )
    if opened.directory is None:
        raise ArtifactError(
            f"{opened.path}: is not in its run directory, whose config.json describes the model",
            hint="name the run directory, or leave out --data",
        )
    return opened.checkpoint, read_config(opened.directory)


def _restored(checkpoint: Checkpoint, config: RunConfig, plan: Plan) -> nn.Module:
    """The model of a checkpoint, with latent weights."""
    model = build_architecture(
        config.architecture,
        num_classes=config.num_classes,
        model_kwargs=config.model_args,
        pretrained_cfg=config.pretrained_cfg,
    )
    apply_plan(model, plan)
    model.load_state_dict(checkpoint.model)
    return model


def _settings(checkpoint: Checkpoint, data: ImageData, steps: int) -> tuple[Training, list[str]]:
    """The training settings with a single phase: the current one, or the last one as it was at its end."""
    training = Recipe.model_validate(checkpoint.recipe).training
    assert training is not None
    phase = training.phases[min(checkpoint.position["phase"], len(training.phases) - 1)]
    changed: dict[str, Any] = {"schedule": "constant", "warmup_steps": 0, "warmup_epochs": 0}
    notes = []
    if checkpoint.optimizer:
        changed["lr"] = checkpoint.optimizer["param_groups"][0]["lr"]
    else:
        changed["lr"] = checkpoint.history[-1]["lr"] if checkpoint.history else phase.lr or training.optimizer.lr
        notes.append("live: the checkpoint has no state of the optimizer, which starts without state")
    if not checkpoint.position["phase_step"]:  # between phases
        changed |= {n: s.at_end() for n, s in phase.remedies.items() if isinstance(s, RemedySettings)}
    changed["epochs"] = max(phase.epochs, steps)  # an epoch has at least one step
    batch = min(training.batch_size, len(data))
    if batch < training.batch_size:
        notes.append(f"live: batches have all {batch} images, those of the recipe {training.batch_size}")
    kept = {"batch_size": batch, "ema": None, "tracking": None, "phases": (phase.model_copy(update=changed),)}
    return training.model_copy(update=kept), notes


def _at_start(checkpoint: Checkpoint) -> Checkpoint:
    """The same state, at the start of a training with one phase."""
    position = Position(**{key: checkpoint.position[key] for key in ("total_epochs", "phase_step")})
    return replace(checkpoint, position=vars(position), meter=vars(Meter()), history=[], ema=None, tracker=None)


def _teacher(settings: Distillation | None, config: RunConfig) -> tuple[Teacher | None, list[str]]:
    """The recipe's teacher, or why there is none; ``self`` is the float model that the training started from."""
    if settings is None:
        return None, []
    name = (sources.run_in(config.source) or config.source) if settings.teacher == "self" else settings.teacher
    try:
        subject = open_subject(ModelRequest(name, features=not config.num_classes))
        teacher = Teacher(subject.model, subject.data_config, config.data_config, name)
        teacher.check_classes(config.num_classes, name)
    except OfqctlError as error:
        if not config.num_classes:  # there is nothing else to learn from
            raise
        return None, [f"live: without distillation, learning from the labels alone: {error.message}"]
    return teacher, []
