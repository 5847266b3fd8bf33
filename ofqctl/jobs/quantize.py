"""The main job: quantize a float model, and write a packed low-bit run directory with measured figures."""

import copy
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.artifact import RunConfig, latents_file, save_run, serialize
from ofqctl.data import DataSpec, ImageLoader
from ofqctl.devices import DeviceName, denormals_flushed, memory_kept, pick_device, suited_threads
from ofqctl.errors import DataError, RecipeError
from ofqctl.evaluation import Subject, evaluate, of_model, paired
from ofqctl.files import output_directory
from ofqctl.jobs.calibrating import CalibrationImages, calibration_images
from ofqctl.jobs.embedding import EmbeddingData, check_embeds, measure_embeddings, open_embedding_data
from ofqctl.jobs.measuring import about_data, open_labelled
from ofqctl.jobs.mixing import Target, mix_precision
from ofqctl.jobs.overlap import Watched
from ofqctl.jobs.starting import check_model, open_float
from ofqctl.jobs.writing import about_run, default_output, float_model_bytes, run_config
from ofqctl.models import LoadedModel, ModelRequest
from ofqctl.progress import Progress, silent
from ofqctl.ptq import Clock, Task, check_time_budget, quantize_post_training
from ofqctl.quantizers import fused
from ofqctl.recipe import Recipe
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.results.embeddings import ComparedEmbeddings
from ofqctl.results.quantize import Compared, MixedPrecision, QuantizeResult
from ofqctl.training import Processes


@dataclass(frozen=True)
class QuantizeRequest:
    """A request to quantize a model.

    Attributes:
        model: The float model; one that is loaded already is quantized in place.
        recipe: The recipe to follow.
        output: The run directory; None derives a name from model and bits under ``runs/``.
        calibration: Calibration images (labels are not used), or batches of them, normalized (B, 3, H, W); None uses
            synthetic images.
        data: Images to measure the float and the quantized model on, or None; labelled ones for a classifier.
        overwrite: Whether to replace an existing run.
        seed: Seed of random weights and of the choice of calibration images.
        device: Device to compute on.
        batch_size: Number of images in one forward pass of the evaluation.
        workers: Number of processes that decode images.
        strict: Whether anything left undone is an error.
        target: Limits for the bits of weights, activations or both, which are then allocated layer by layer; None uses
            those of the recipe.
        time_budget: Seconds for the stages after calibration, > 0; None sets no limit.
        compiled: Whether the quantizers are compiled, which pays off if a stage runs them many times.
        index: Images that embeddings are looked up among; None takes the others of ``data``.
        tokens: Whether patch tokens are compared as well as embeddings.
    """

    model: ModelRequest | LoadedModel
    recipe: Recipe
    output: Path | None = None
    calibration: DataSpec | Iterable[Tensor] | None = None
    data: DataSpec | None = None
    overwrite: bool = False
    seed: int = 0
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0
    strict: bool = False
    target: Target | None = None
    time_budget: float | None = None
    compiled: bool = False
    index: DataSpec | None = None
    tokens: bool = False


def quantize(request: QuantizeRequest, progress: Progress = silent) -> QuantizeResult:
    """Convert, calibrate, optionally measure beside the float model, and write the run directory.

    Returns:
        What was done and measured, of which ``results.json`` holds all but the path.

    Raises:
        OfqctlError: An error that the user can fix; nothing was written.
    """
    with ExitStack() as claimed:
        quantized = _quantized(request, progress, claimed)
        save_run(Path(str(quantized.result.output)), *quantized.files())
        return quantized.result


def quantize_in_memory(request: QuantizeRequest, progress: Progress = silent) -> "Quantized":
    """The same without the run directory; ``output`` and ``overwrite`` do not matter.

    Raises:
        OfqctlError: An error that the user can fix.
    """
    return _quantized(request, progress, None)


@dataclass
class Quantized:
    """A quantized model.

    Attributes:
        model: The model.
        weights: Content of ``model.safetensors``.
        config: Content of ``config.json``.
        result: What was done and measured.
    """

    model: nn.Module
    weights: bytes
    config: RunConfig
    result: QuantizeResult

    def files(self) -> tuple[nn.Module, bytes, RunConfig, dict[str, Any], bytes | None]:
        """What a run directory is written from; with latent weights, if a stage has trained them."""
        about = self.config.quantization_config
        trained = any("latents" in PTQ_STAGES[stage.stage].traits for stage in about.recipe.ptq)
        latents = latents_file(self.model, about.sha256) if trained else None
        return self.model, self.weights, self.config, self.result.stored(), latents


def _quantized(request: QuantizeRequest, progress: Progress, claimed: ExitStack | None) -> Quantized:
    started = time.perf_counter()
    job = _open(request, progress, claimed)
    with _calibration(job) as calibration:
        recipe, mixed = _allocate_bits(job, calibration)
        task = _quantize(job, recipe, calibration)
        weights = serialize(task.model)
        figures = _measure(job, task.model, calibration)
    config = run_config(job.loaded, recipe, task.plan, weights, job.float_bytes)
    about = about_run(task.model, config, len(weights))
    if mixed is not None:
        allocated = {"weights": mixed.weights, "activations": mixed.activations}
        averages = {part: round(a.average_bits, 3) for part, a in allocated.items() if a is not None}
        about = about.model_copy(update={"bits": about.bits.model_copy(update=averages)})
    result = QuantizeResult(
        **dict(about),
        output=None if claimed is None else str(job.output),
        calibration=calibration.about,
        evaluation=figures,
        ptq=task.figures,
        mixed_precision=mixed,
        notes=(*job.loaded.notes, *calibration.notes, *task.notes),
        seed=request.seed,
        device=str(job.device),
        seconds=round(time.perf_counter() - started, 2),
    )
    if request.strict:
        refuse_undone(result)
    return Quantized(task.model, weights, config, result)


@dataclass
class _Job:
    """The state of a quantization job.

    Attributes:
        request: The request.
        progress: Called to report progress.
        device: Device to compute on.
        loaded: The float model, which is quantized in place.
        subject: The float model as a subject of evaluation.
        output: The run directory.
        evaluation: Images to measure on, or None: for embeddings with those to look among.
        float_model: A copy of the float model to measure as well, or None.
        float_bytes: Size of the float model's weights.
    """

    request: QuantizeRequest
    progress: Progress
    device: torch.device
    loaded: LoadedModel
    subject: Subject
    output: Path
    evaluation: ImageLoader | EmbeddingData | None
    float_model: nn.Module | None
    float_bytes: int

    @property
    def input_size(self) -> tuple[int, int, int]:
        """Size of one image, (3, H, W)."""
        channels, height, width = self.subject.data_config["input_size"]
        return channels, height, width


def _open(request: QuantizeRequest, progress: Progress, claimed: ExitStack | None) -> _Job:
    """Open model and data, and claim the output if there is something to claim it with."""
    check_time_budget(request.time_budget)
    device = pick_device(request.device)
    if claimed is not None and request.output is not None:
        claimed.enter_context(_output(request, request.output))
    torch.manual_seed(request.seed)
    progress("load the model", 0, None)
    loaded = request.model if isinstance(request.model, LoadedModel) else open_float(request.model)
    check_model(request.recipe, loaded)
    output = request.output or _default_output(loaded.architecture, request)
    if claimed is not None and request.output is None:
        claimed.enter_context(_output(request, output))
    subject = of_model(loaded)
    evaluation = _evaluation(request, subject)
    return _Job(
        request=request,
        progress=progress,
        device=device,
        loaded=loaded,
        subject=subject,
        output=output,
        evaluation=evaluation,
        float_model=None if evaluation is None else copy.deepcopy(loaded.model).to(device),
        float_bytes=float_model_bytes(loaded.model),
    )


def _calibration(job: _Job) -> AbstractContextManager[CalibrationImages]:
    """The calibration images, on disk within the block."""
    request = job.request
    return calibration_images(
        request.calibration,
        request.recipe.calibration,
        job.subject,
        job.device,
        job.progress,
        seed=request.seed,
        workers=request.workers,
    )


def _allocate_bits(job: _Job, calibration: CalibrationImages) -> tuple[Recipe, MixedPrecision | None]:
    """The recipe, with bits for every layer if there is a target, and the figures that led to them."""
    request = job.request
    if request.target is None:
        return request.recipe, None
    model = job.loaded.model.to(job.device)
    with fused(request.compiled), denormals_flushed(job.device), suited_threads(model):
        return mix_precision(model, request.recipe, request.target, job.input_size, calibration.batches, job.progress)


def _quantize(job: _Job, recipe: Recipe, calibration: CalibrationImages) -> Task:
    """Quantize the model in place."""
    request = job.request
    model = job.loaded.model.to(job.device)
    with fused(request.compiled), denormals_flushed(job.device), memory_kept(), suited_threads(model):
        return quantize_post_training(
            model,
            recipe,
            job.input_size,
            calibration.batches,
            progress=job.progress,
            clock=Clock(request.time_budget),
            seed=request.seed,
        )


def _evaluation(request: QuantizeRequest, subject: Subject) -> ImageLoader | EmbeddingData | None:
    """Open the images to measure on, if there are some.

    Raises:
        DataError: They do not fit the model, or are missing.
        ModelError: Something is asked for that a classifier does not have.
    """
    sizes = {"batch_size": request.batch_size, "workers": request.workers}
    asked = {"--index-data": request.index, "--tokens": request.tokens}
    check_embeds(subject, asked)
    if request.data is None:
        if any(asked.values()):
            raise DataError(f"{', '.join(name for name, given in asked.items() if given)}: needs --data DATA")
        return None
    if subject.embeds:
        return open_embedding_data(request.data, request.index, subject, **sizes)
    return open_labelled(request.data, subject, **sizes)


def _measure(job: _Job, model: nn.Module, calibration: CalibrationImages) -> Compared | ComparedEmbeddings | None:
    """Figures of the float and the quantized model on the same images, if there are some."""
    data = job.evaluation
    if data is None or job.float_model is None:
        return None
    models = {"float": job.float_model, "quantized": model}
    loader = data.queries if isinstance(data, EmbeddingData) else data
    watched = Watched(loader, calibration.batches)
    figures: Compared | ComparedEmbeddings
    if isinstance(data, EmbeddingData):
        alone = Processes(0, 1, job.device)
        found = measure_embeddings(models, data, alone, job.progress, tokens=job.request.tokens, queries=watched)
        figures = ComparedEmbeddings(
            **dict(data.about(job.subject)),
            float=found.models["float"],
            quantized=found.models["quantized"],
            paired=found.paired,
            neighbours=found.neighbours,
        )
    else:
        metrics = evaluate(models, watched, device=job.device, total=loader.image_count, progress=job.progress)
        figures = Compared(
            **dict(about_data(data, job.subject)),
            float=metrics["float"].accuracy,
            quantized=metrics["quantized"].accuracy,
            paired=paired(metrics["float"].right, metrics["quantized"].right),
        )
    calibration.notes += watched.notes
    return figures


def _output(request: QuantizeRequest, output: Path) -> AbstractContextManager[None]:
    sources = request.model.paths if isinstance(request.model, ModelRequest) else []
    return output_directory(output, overwrite=request.overwrite, sources=sources)


def _default_output(architecture: str, request: QuantizeRequest) -> Path:
    if request.target is None:
        return default_output(architecture, request.recipe)
    mixed = request.target.parts
    weights, activations = (
        "mixed" if part in mixed else f"{part[0]}{getattr(request.recipe, part).bits}"
        for part in ("weights", "activations")
    )
    return Path("runs") / f"{architecture}-{weights}-{activations}"


def refuse_undone(result: QuantizeResult) -> None:
    """Check that nothing was left undone, left out or guessed.

    Raises:
        RecipeError: Something was; the message lists everything left in float, every note and every image skipped.
    """
    undone = [f"{left.module}: {left.reason}" for left in result.left_float] + [*result.notes]
    if (figures := result.evaluation) is not None:
        undone += [*figures.data_notes, *(f"{image.image}: {image.reason}" for image in figures.skipped)]
    if undone:
        raise RecipeError("\n  ".join(["--strict: not everything was done as asked:", *undone]))
