"""Train a float model or an earlier run and write a run directory; training can be interrupted and resumed."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from timm.utils.random import random_seed

from ofqctl.artifact import load_run
from ofqctl.convert import apply_plan
from ofqctl.data import ImageData, ImageLoader, image_loader
from ofqctl.devices import denormals_flushed, pick_device
from ofqctl.distill import TERMS, SoftLabels, Teacher, labels_digest
from ofqctl.documents import field_fault, fitting
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.evaluation import holds_run, open_subject
from ofqctl.files import NEXT_STATE, is_ours, output_directory, sweep
from ofqctl.jobs.pacing import STAGES, as_begun, paced
from ofqctl.jobs.starting import Start, check_model, open_start
from ofqctl.jobs.train_request import TrainRequest, check_same, check_same_data, recorded_request
from ofqctl.jobs.trained_run import TrainedRun
from ofqctl.jobs.writing import about_run, default_output
from ofqctl.models import LoadedModel, ModelRequest, gives
from ofqctl.progress import Progress, silent
from ofqctl.ptq import Clock, check_time_budget
from ofqctl.quantizers.fusing import fused
from ofqctl.recipe import Plan
from ofqctl.recipe.training import Training
from ofqctl.results.train import TrainResult
from ofqctl.training import (
    Checkpoint,
    Engine,
    Hooks,
    Interrupted,
    Processes,
    Row,
    Share,
    TrainingBatches,
    check_logs,
    check_objective,
    joined,
    open_logs,
    read_checkpoint_state,
    state_to_resume,
    warmup_steps,
)

__all__ = ["TrainRequest", "recorded_request", "train"]


def train(
    request: TrainRequest, progress: Progress = silent, on_step: Callable[[Row, int], None] = lambda _row, _total: None
) -> TrainResult:
    """Train to the end, or continue an interrupted run.

    Args:
        request: The request.
        progress: Called to report the progress of loading, calibration and evaluation.
        on_step: Called after every optimizer step, with its figures and the number of steps in the whole training.

    Returns:
        The run, of which ``results.json`` holds all but the path.

    Raises:
        OfqctlError: An error that the user can fix.
        Interrupted: A signal was received; the run can be resumed.
    """
    device = pick_device(request.device)
    with joined(device) as processes, fused(request.compiled), denormals_flushed(device):
        return _train(request, processes, progress, on_step)


def _train(
    request: TrainRequest, processes: Processes, progress: Progress, on_step: Callable[[Row, int], None]
) -> TrainResult:
    job = _open(request, processes, progress)
    if job.is_finished and job.names_same_data:
        return _finished(job.output)
    with _claimed(job):
        return _train_claimed(job, progress, on_step)


@dataclass
class _Job:
    """The state of a training job.

    Attributes:
        request: The request.
        settings: The training part of its recipe.
        processes: The processes that train together.
        start: The float model or the run to start from.
        output: The run directory.
        checkpoint: The state to continue from, or None.
        clock: The time that is left.
    """

    request: TrainRequest
    settings: Training
    processes: Processes
    start: Start
    output: Path
    checkpoint: Checkpoint | None
    clock: Clock

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to do."""
        done = self.checkpoint is not None and self.checkpoint.position["phase"] >= len(self.settings.phases)
        return done and holds_run(self.output)

    @property
    def names_same_data(self) -> bool:
        """Whether the request names the training images as the run did."""
        return self.checkpoint is not None and self.checkpoint.request.get("data") == self.request.recorded()["data"]


def _train_claimed(job: _Job, progress: Progress, on_step: Callable[[Row, int], None]) -> TrainResult:
    """Train while no other process can write the run directory."""
    request, processes = job.request, job.processes
    run = TrainedRun.open(request, processes, job.start, job.output, progress)
    identity = run.data.identity
    if request.soft_labels is not None:
        identity |= {"soft_labels": labels_digest(request.soft_labels)}
    if job.checkpoint is not None and not request.force_recipe:
        job.start.loaded.notes.extend(check_same_data(job.checkpoint, identity, job.output))
    if job.is_finished:
        return _finished(job.output)
    if request.check_data:
        run.check_headers()
    run.replaces = (job.output / NEXT_STATE).is_file() if job.checkpoint else is_ours(job.output)
    engine = _engine(job, run, identity, progress)
    run.teacher = engine.teacher
    if job.checkpoint is not None:
        engine.restore(job.checkpoint)
    # of dropout and mixing, which differ from process to process
    random_seed(request.seed, processes.rank)  # type: ignore[no-untyped-call]
    _fit(job, engine, run, on_step)
    if processes.first and run.result is None:  # resumed after the last epoch
        run.publish(engine)
    return run.result or run.result_of(engine)


def _open(request: TrainRequest, processes: Processes, progress: Progress) -> _Job:
    """Open the model, and decide where the result is written and whether a run is continued."""
    clock = Clock(request.time_budget)
    settings = request.recipe.training
    if settings is None:
        raise RecipeError(
            f"recipe '{request.recipe.name}': has no training part", hint="`ofqctl recipe ls` shows which have one"
        )
    check_time_budget(request.time_budget)
    check_logs(request.logs)
    torch.manual_seed(request.seed)
    progress("load the model", 0, None)
    start = open_start(request.model, settings.drop_path)
    check_model(request.recipe, start.loaded)
    check_objective(
        settings, gives(start.loaded.num_classes), recipe=request.recipe.name, model=start.loaded.architecture
    )
    if request.recipe.ptq and start.plan is not None:
        stages = ", ".join(stage.stage for stage in request.recipe.ptq)
        start.loaded.notes.append(f"the run is quantized already: training starts without {stages}")
    if settings.augmentation.crop_pct is not None:
        start.loaded.data_config["crop_pct"] = settings.augmentation.crop_pct
    output = _output(request, start.loaded)
    checkpoint = _begun(request, output)
    if checkpoint is not None and request.time_budget is not None:
        request = replace(request, recipe=as_begun(request.recipe, checkpoint))
        settings = request.recipe.training or settings
    if checkpoint is not None and not request.force_recipe:
        check_same(checkpoint, request, processes.world, output)
    return _Job(request, settings, processes, start, output, checkpoint, clock)


def _engine(job: _Job, run: TrainedRun, identity: dict[str, Any], progress: Progress) -> Engine:
    """The engine with batches, teacher and quantized model, and with the epochs that there is time for."""
    request, processes, loaded, data = job.request, job.processes, job.start.loaded, run.data
    share = Share(job.settings.batch_size, request.grad_accum, processes.rank, processes.world)
    teacher = _teacher(request, job.start, processes)
    labels = _soft_labels(request, teacher, data, loaded)
    batches = TrainingBatches(
        data, loaded.data_config, job.settings, share, seed=request.seed, workers=request.workers, labels=labels
    )
    if labels is not None:
        teacher = None  # batches have its answers
    plan = _quantized(job, data, progress)
    recipe = request.recipe
    if job.checkpoint is None and job.clock.left is not None:
        trial = Engine(copy.deepcopy(loaded.model), plan, recipe, batches, teacher, processes, amp=request.amp)
        recipe = paced(trial, job.clock, run.validated, progress)
    assert recipe.training is not None
    for phase in recipe.training.phases:
        warmup, steps = warmup_steps(phase, batches.steps_per_epoch), phase.epochs * batches.steps_per_epoch
        if warmup > steps:
            loaded.notes.append(f"phase '{phase.name}' ends within its warm-up: it has {steps} of {warmup} steps")
    return Engine(
        loaded.model,
        plan,
        recipe,
        batches,
        teacher,
        processes,
        amp=request.amp,
        checkpoint_every=request.checkpoint_every,
        request=request.recorded(),
        data=identity,
    )


def _fit(job: _Job, engine: Engine, run: TrainedRun, on_step: Callable[[Row, int], None]) -> None:
    """Train to the end, with every epoch published and logged."""
    names = job.request.logs if job.processes.first else ()
    with open_logs(names, job.output, job.request.recorded(), engine.position.total_steps) as logs:

        def step(row: Row) -> None:
            logs.add(row | {"loss": row["step_loss"]})
            on_step(row, engine.planned_steps)

        def epoch(row: Row) -> None:
            run.publish(engine)
            logs.add({name: value for name, value in row.items() if name not in ("loss", "train_top1")})

        engine.hooks = Hooks(step, epoch, run.validate, save=run.save)
        try:
            engine.fit()
        except Interrupted as interruption:
            interruption.directory = job.output
            raise


def _output(request: TrainRequest, loaded: LoadedModel) -> Path:
    """The run directory: the one to continue, the named one, or one derived from the model."""
    if not isinstance(request.resume, Path):
        return request.output or default_output(loaded.architecture, request.recipe)
    if request.output is not None and request.output.resolve() != request.resume.resolve():
        raise ArtifactError(f"{request.resume}: is continued where it lies, not in {request.output}")
    return request.resume


def _begun(request: TrainRequest, output: Path) -> Checkpoint | None:
    """The state to continue from, or None."""
    if request.resume is None or (request.resume == "auto" and not state_to_resume(output).is_file()):
        return None
    return read_checkpoint_state(output, resumed=True)


def _finished(output: Path) -> TrainResult:
    """The result of a run that is already finished; its process may have been killed at the very end."""
    sweep(output)
    run = load_run(output)
    note = f"{output}: was finished already; `ofqctl train {output} --output NEW` starts another training from it"
    about = dict(about_run(run.model, run.config, run.ledger.total)) | {"output": str(output)}
    said = dict.fromkeys(("training", "evaluation", "seed", "device"))
    try:
        result = TrainResult.model_validate(about | {key: run.results.get(key) for key in said})
    except ValidationError as error:
        result = TrainResult.model_validate(about | said)
        run.notes = (*run.notes, f"{output}: results.json: {field_fault(error)}; its figures are left out")
    return result.model_copy(update={"notes": (*run.results.get("notes", []), *run.notes, note)})


def _claimed(job: _Job) -> AbstractContextManager[None]:
    """Keep other trainings out of the run directory, in the process that writes it."""
    request, settings = job.request, job.settings
    if not job.processes.first:
        return nullcontext()
    teachers = [Path(settings.distillation.teacher)] if settings.distillation else []
    labels = [] if request.soft_labels is None else [request.soft_labels]
    sources, resumed = [*request.model.paths, *teachers, *labels], job.checkpoint is not None
    return output_directory(job.output, overwrite=request.overwrite, resumed=resumed, sources=sources)


def _teacher(request: TrainRequest, start: Start, processes: Processes) -> Teacher | None:
    training, loaded = request.recipe.training, start.loaded
    if training is None or training.distillation is None:
        return None
    settings = training.distillation
    if settings.teacher != "self":
        subject = open_subject(ModelRequest(settings.teacher, features=not loaded.num_classes))
        model, config = subject.model, subject.data_config
    elif start.plan is None:
        model, config = copy.deepcopy(loaded.model), loaded.data_config
    else:
        raise RecipeError(
            f"training.distillation.teacher: self is the float model that training starts from, but {loaded.source} "
            "is quantized",
            hint=f"--set training.distillation.teacher=NAME; the run came from {start.origin}",
        )
    teacher = Teacher(model, config, loaded.data_config, settings.teacher)
    teacher.check_classes(loaded.num_classes, settings.teacher)
    return teacher.to(processes.device)


def _soft_labels(
    request: TrainRequest, teacher: Teacher | None, data: ImageData, loaded: LoadedModel
) -> SoftLabels | None:
    """The soft labels that were asked for, checked against the training."""
    if request.soft_labels is None:
        return None
    training, path = request.recipe.training, request.soft_labels
    assert training is not None
    asking = [name for name in training.objective if "needs_teacher" in TERMS[name].traits and name != "answers"]
    if teacher is None or "answers" not in training.objective or asking:
        lacks = "the recipe learns from no teacher's answers"
        why = f"{', '.join(asking)} asks the teacher itself" if asking else lacks
        raise RecipeError(f"--soft-labels {path}: stand for the teacher's answers alone, and {why}")
    labels = SoftLabels.read(path)
    labels.check(teacher.model, data.identity, loaded.data_config, training.augmentation)
    return labels


def _quantized(job: _Job, data: ImageData, progress: Progress) -> Plan:
    """Convert the model in place, with start values unless a checkpoint is restored."""
    request, start, checkpoint, processes = job.request, job.start, job.checkpoint, job.processes
    loaded, wanted = start.loaded, request.recipe.calibration
    if checkpoint is not None:
        plan = Plan.model_validate(checkpoint.plan)
        with fitting("last.pt: its plan does not fit the model"):
            apply_plan(loaded.model, plan)
            loaded.model.to(processes.device)
            with torch.no_grad():  # the shapes in it are broadcast to those of the model
                loaded.model.eval()(torch.zeros(1, *loaded.data_config["input_size"], device=processes.device))
        return plan

    def images() -> ImageLoader:
        size, count = wanted.batch_size, wanted.images
        return image_loader(data, loaded.data_config, batch_size=size, limit=count, seed=request.seed)

    plan, notes = start.quantized(
        request.recipe,
        images,
        progress,
        lambda model: model.to(processes.device),
        seed=request.seed,
        clock=job.clock.part(STAGES),
    )
    loaded.notes.extend(notes)
    return plan
