"""Train: a float model or an earlier run in, a trained run directory out; interrupted and resumed at will."""

import copy
import csv
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ofqctl.artifact import check_output, load_run, serialize
from ofqctl.artifact.atomic import replaced_file
from ofqctl.artifact.run import write_files
from ofqctl.convert import apply_plan, convert, describe
from ofqctl.data import DataSpec, ImageData, image_loader, open_data
from ofqctl.devices import DeviceName, denormals_flushed, pick_device
from ofqctl.distill import Teacher
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.evaluation import evaluate, holds_run, of_model, open_subject
from ofqctl.jobs.writing import about_run, default_output, float_model_bytes, run_config
from ofqctl.models import LoadedModel, ModelRequest, load_model
from ofqctl.progress import Progress, silent
from ofqctl.ptq import calibrate
from ofqctl.quantizers.fusing import fused
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.training import Training
from ofqctl.training import (
    FILE,
    Checkpoint,
    Engine,
    Hooks,
    Processes,
    Row,
    Share,
    TrainingBatches,
    joined,
    read_checkpoint_state,
)


@dataclass(frozen=True)
class TrainRequest:
    """What to train, on what, and where to write it.

    Attributes:
        model: A float model, or the path of a run whose model is float.
        recipe: With a ``training`` part.
        data: Labelled training images.
        val_data: Labelled images that are measured after every epoch, or None.
        output: The run directory; None derives a name from model and bits under ``runs/``.
        overwrite: Whether to replace an existing run.
        resume: Continue the run in ``output``; with ``auto`` only if there is one.
        force_recipe: Resume with another recipe than the run's.
        seed: Decides random weights, order and augmentation.
        device: Where to compute.
        amp: Autocast to bfloat16.
        compiled: Compile the quantizers' arithmetic.
        grad_accum: Forward passes in one optimizer step.
        checkpoint_every: Steps between checkpoints within an epoch; 0 saves after epochs only.
        workers: Processes that decode images.
    """

    model: ModelRequest
    recipe: Recipe
    data: DataSpec
    val_data: DataSpec | None = None
    output: Path | None = None
    overwrite: bool = False
    resume: str | None = None
    force_recipe: bool = False
    seed: int = 0
    device: DeviceName = "auto"
    amp: bool = False
    compiled: bool = False
    grad_accum: int = 1
    checkpoint_every: int = 0
    workers: int = 0


def train(
    request: TrainRequest, progress: Progress = silent, on_step: Callable[[Row, int], None] = lambda _row, _total: None
) -> dict[str, Any]:
    """Train to the end, or on from where an interrupted run stopped.

    Args:
        request: What to do.
        progress: Told about loading, calibration and evaluation.
        on_step: Called after every optimizer step with its figures and the number of steps of the whole training.

    Returns:
        ``results.json`` and where it lies.

    Raises:
        OfqctlError: Something a person can mend.
        Interrupted: A signal came; the run can be resumed.
    """
    device = pick_device(request.device)
    with joined(device) as processes, fused(request.compiled), denormals_flushed(device):
        return _train(request, processes, progress, on_step)


def _train(
    request: TrainRequest, processes: Processes, progress: Progress, on_step: Callable[[Row, int], None]
) -> dict[str, Any]:
    settings = request.recipe.training
    if settings is None:
        raise RecipeError(
            f"recipe '{request.recipe.name}': has no training part", hint="`ofqctl recipe ls` shows which have one"
        )
    torch.manual_seed(request.seed)
    progress("load the model", 0, None)
    loaded = _start(request.model, settings)
    _check_model(request.recipe, loaded)
    if settings.augmentation.crop_pct is not None:
        loaded.data_config["crop_pct"] = settings.augmentation.crop_pct
    output = request.output or default_output(loaded.architecture, request.recipe)
    checkpoint = _resumable(request, output)
    if checkpoint is None and processes.first:
        _check_free(output, overwrite=request.overwrite)
    work = _Work.open(request, loaded, output, progress)
    share = Share(settings.batch_size, request.grad_accum, processes.rank, processes.world)
    batches = TrainingBatches(
        work.data, loaded.data_config, settings.augmentation, share, seed=request.seed, workers=request.workers
    )
    teacher = _teacher(request, loaded, processes)
    plan = _quantized(request, loaded, work.data, checkpoint, processes, progress)
    total = batches.steps_per_epoch * sum(phase.epochs for phase in settings.phases)
    engine = Engine(
        loaded.model,
        plan,
        request.recipe,
        batches,
        teacher,
        processes,
        amp=request.amp,
        checkpoint_every=request.checkpoint_every,
    )
    engine.hooks = Hooks(
        step=lambda row: on_step(row, total),
        epoch=lambda _row: work.publish(engine),
        validate=work.validate,
        save=lambda state: state.save(output),
    )
    if checkpoint is not None:
        engine.restore(checkpoint)
    elif processes.first:
        _make_empty(output)
    engine.fit()
    if processes.first and not work.results:  # resumed after the last epoch
        work.publish(engine)
    return {"output": str(output)} | work.results


def _check_model(recipe: Recipe, loaded: LoadedModel) -> None:
    if recipe.model is not None and not fnmatchcase(loaded.architecture, recipe.model):
        raise RecipeError(
            f"recipe '{recipe.name}': is for {recipe.model}, not for {loaded.architecture}",
            hint="--set model=null takes it for any model",
        )


def _start(request: ModelRequest, settings: Training) -> LoadedModel:
    """A float model by name, or that of a run that left everything in float."""
    path = Path(request.name)
    if not holds_run(path):
        depth = {} if settings.drop_path is None else {"drop_path_rate": settings.drop_path}
        return load_model(replace(request, kwargs={**depth, **request.kwargs}))
    run = load_run(path)
    if run.config.quantization_config.plan.modules:
        raise ArtifactError(
            f"{path}: holds codes, not the float weights that training starts from",
            hint="name the float model it came from, or `--resume` a training run",
        )
    config = run.config
    return LoadedModel(
        model=run.model.requires_grad_(True),
        architecture=config.architecture,
        num_classes=config.num_classes,
        model_kwargs=config.model_args,
        pretrained_cfg=config.pretrained_cfg | {"label_names": config.label_names},
        data_config=config.data_config,
        source=f"run {path}",
        notes=[],
    )


def _resumable(request: TrainRequest, output: Path) -> Checkpoint | None:
    """The state to continue from, or None to start anew."""
    if request.resume is None or (request.resume == "auto" and not (output / FILE).is_file()):
        return None
    checkpoint = read_checkpoint_state(output)
    before, now = checkpoint.recipe, request.recipe.model_dump(mode="json")
    differing = [
        f"{path}: {a!r} in the run, {b!r} now" for path, a, b in _differences(before, now) if path != "description"
    ]
    if differing and not request.force_recipe:
        raise RecipeError(
            "\n  ".join([f"{output}: was trained with another recipe:", *differing[:12]]),
            hint="--force-recipe continues with the new one",
        )
    return checkpoint


def _differences(one: Any, other: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Where two nested values differ: path, one value, other value."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        return [
            found
            for key in keys
            for found in _differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if one == other else [(path, one, other)]


def _check_free(output: Path, *, overwrite: bool) -> None:
    """Make sure that a new run can be written; a training state without a finished epoch counts as a run."""
    if not (overwrite and (output / FILE).is_file()):
        check_output(output, overwrite=overwrite)


def _make_empty(output: Path) -> None:
    """An empty directory to train into."""
    if output.exists():
        shutil.rmtree(output)
    output.mkdir(parents=True)


def _train_split(spec: DataSpec) -> DataSpec:
    """The digits' training part, where none was named: their default part is the one for measuring."""
    return DataSpec(spec.path, split="train") if spec.path == "digits" and spec.split is None else spec


def _teacher(request: TrainRequest, loaded: LoadedModel, processes: Processes) -> Teacher | None:
    training = request.recipe.training
    if training is None or training.distillation is None:
        return None
    settings = training.distillation
    if settings.teacher == "self":
        model, config = copy.deepcopy(loaded.model), loaded.data_config
    else:
        subject = open_subject(ModelRequest(settings.teacher))
        model, config = subject.model, subject.data_config
    teacher = Teacher(model, config, loaded.data_config, settings.teacher)
    teacher.check_classes(loaded.num_classes, settings.teacher)
    return teacher.to(processes.device)


def _quantized(
    request: TrainRequest,
    loaded: LoadedModel,
    data: ImageData,
    checkpoint: Checkpoint | None,
    processes: Processes,
    progress: Progress,
) -> Plan:
    """Convert the model in place, and calibrate it on training images unless it is about to be restored."""
    if checkpoint is not None:
        plan = Plan.model_validate(checkpoint.plan)
        apply_plan(loaded.model, plan)
        loaded.model.to(processes.device)
        return plan
    plan = convert(loaded.model, request.recipe, tuple(loaded.data_config["input_size"]))
    loaded.model.to(processes.device)
    wanted = request.recipe.calibration
    if plan.modules:
        images = image_loader(
            data, loaded.data_config, batch_size=wanted.batch_size, limit=wanted.images, seed=request.seed
        )
        progress("calibrate", 0, wanted.images)
        calibrate(
            loaded.model,
            plan,
            (batch for batch, _ in images),
            on_batch=lambda done: progress("calibrate", done, wanted.images),
        )
    return describe(loaded.model, plan)


@dataclass
class _Work:
    """What stays the same throughout a training: its images, and how its run directory is written.

    Attributes:
        results: What was written last.
    """

    request: TrainRequest
    loaded: LoadedModel
    output: Path
    data: ImageData
    val_data: ImageData | None
    float_bytes: int
    progress: Progress
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, request: TrainRequest, loaded: LoadedModel, output: Path, progress: Progress) -> "_Work":
        """Open training and validation images; a model whose classes have no names takes those of the images."""
        data = open_data(_train_split(request.data), of_model(loaded).labels)
        if loaded.pretrained_cfg.get("label_names") is None and data.label_space.names is not None:
            loaded.pretrained_cfg["label_names"] = list(data.label_space.names)
        val_data = None if request.val_data is None else open_data(request.val_data, data.label_space)
        return cls(request, loaded, output, data, val_data, float_model_bytes(loaded.model), progress)

    def validate(self, model: nn.Module) -> Row:
        """Top-1 and loss on the validation images."""
        if self.val_data is None:
            return {}
        loader = image_loader(self.val_data, self.loaded.data_config, batch_size=64, workers=self.request.workers)
        device = next(model.parameters()).device
        was_training = model.training
        measured = evaluate(
            {"model": model.eval()}, loader, device=device, total=loader.image_count, progress=self.progress
        )
        model.train(was_training)
        figures = measured["model"].as_dict()
        return {"val_top1": figures["top1"], "val_loss": figures["loss"]}

    def publish(self, engine: Engine) -> None:
        """Write the run directory as it is after an epoch."""
        weights = serialize(engine.trained)
        plan = describe(engine.trained, engine.plan)
        config = run_config(self.loaded, self.request.recipe, plan, weights, self.float_bytes)
        figures = {k: v for k, v in (engine.history or [{}])[-1].items() if k.startswith("val_")}
        self.results = about_run(engine.trained, config, weights) | {
            "training": {"data": self.data.name, "labels": self.data.mapping, "epochs": engine.history},
            "evaluation": None if self.val_data is None else {"data": self.val_data.name} | figures,
            "notes": [*self.loaded.notes, *self.data.notes],
            "seed": self.request.seed,
            "device": str(engine.processes.device),
        }
        write_files(self.output, weights, config, self.results)
        if engine.tracker is not None:
            with replaced_file(self.output / "oscillation.safetensors") as fresh:
                save_file(engine.tracker.state_dict(), fresh)
        with replaced_file(self.output / "summary.csv") as fresh:
            fresh.write_text(_as_csv(engine.history), encoding="utf-8")


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
