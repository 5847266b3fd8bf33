"""Measure a float model, a run directory or an ONNX file: a classifier on labelled images, embeddings on any."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName, pick_device
from ofqctl.errors import DataError, ModelError
from ofqctl.evaluation import Normalization, Subject, float_model_of, open_subject
from ofqctl.files import output_file
from ofqctl.jobs.embedding import check_embeds, measure_embeddings, open_embedding_data
from ofqctl.jobs.measuring import about_data, measure, open_labelled
from ofqctl.jobs.prediction_files import SavedPredictions, check_predictions
from ofqctl.jobs.widths import at_widths
from ofqctl.models import ModelRequest
from ofqctl.progress import Progress, silent
from ofqctl.recipe import Recipe
from ofqctl.results.data import MeasuredOn
from ofqctl.results.evaluate import AtWidth, EvaluateEmbeddingsResult, EvaluateResult
from ofqctl.training import Processes, joined


@dataclass(frozen=True)
class EvaluateRequest:
    """A request to measure a model on data.

    Attributes:
        model: A float model, or the path of a run directory, of the weights file in one, or of an ONNX file; or what
            was opened already.
        data: Labelled images; of a model without a classifier, images with or without labels.
        limit: Number of images to read, drawn from the whole set; None reads all.
        device: Device to compute on.
        batch_size: Number of images in one forward pass.
        workers: Number of processes that decode images.
        normalization: Mean and standard deviation of the images, for an ONNX file that does not contain them.
        index: Images that embeddings are looked up among; None takes the others of ``data``.
        against: The float model that embeddings are compared with, see `float_model_of`; None takes that of the run.
        tokens: Whether patch tokens are compared as well as embeddings.
        save_predictions: Path of a ``.csv`` or ``.parquet`` file for a row for each image that was measured, in the
            order in which they are read, or None; replaced if it exists.
        widths: Bits that its weights are rounded to as well, see `at_widths`.
        rounding: A recipe whose ``weights`` say how they are rounded; None takes the least squared error.
    """

    model: ModelRequest | Subject
    data: DataSpec
    limit: int | None = None
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0
    normalization: Normalization | None = None
    index: DataSpec | None = None
    against: str | Subject | None = None
    tokens: bool = False
    save_predictions: Path | None = None
    widths: tuple[int, ...] = ()
    rounding: Recipe | None = None


def evaluate(request: EvaluateRequest, progress: Progress = silent) -> EvaluateResult | EvaluateEmbeddingsResult:
    """Measure top-1 and top-5 in percent, mean loss in nats and images per second.

    Of a model without a classifier: likeness of its embeddings to the float model's, and, on labelled images, how many
    of them are found by their neighbours, see `compare_embeddings`.

    Processes that ``torchrun`` started share the images; each returns the figures of all images.

    Raises:
        OfqctlError: The model or the data cannot be used, or they do not match.
    """
    check_predictions(request.save_predictions)
    with joined(pick_device(request.device)) as processes, _claimed(request, processes):
        return _evaluate(request, processes, progress)


def _claimed(request: EvaluateRequest, processes: Processes) -> AbstractContextManager[None]:
    """Keep others from writing the predictions, in the process that writes them."""
    output = request.save_predictions
    if output is None or not processes.first:
        return nullcontext()
    read = request.model.paths if isinstance(request.model, ModelRequest) else []
    read += [Path(request.against)] if isinstance(request.against, str) else []
    for spec in (request.data, *([request.index] if request.index else [])):
        read += [Path(spec.path), *([spec.class_map] if spec.class_map else [])]
        if output.suffix == ".parquet" and output.resolve().is_relative_to(Path(spec.path).resolve()):
            read.append(output)
    return output_file(output, sources=read)


def _evaluate(
    request: EvaluateRequest, processes: Processes, progress: Progress
) -> EvaluateResult | EvaluateEmbeddingsResult:
    progress("load the model", 0, None)
    given = request.model
    subject = given if isinstance(given, Subject) else open_subject(given, request.normalization)
    if subject.embeds:
        return _embeddings(request, subject, processes, progress)
    return _classes(request, subject, processes, progress)


def _measured(
    request: EvaluateRequest, subject: Subject, processes: Processes, about: MeasuredOn, notes: list[str]
) -> dict[str, Any]:
    """What the results have in common."""
    skipped = tuple(image for share in processes.gather(about.skipped) for image in share)
    return dict(about) | {
        "skipped": skipped,
        "turned": sum(processes.gather(about.turned)),
        "model": subject.name,
        "kind": subject.kind,
        "recipe": subject.about.get("recipe"),
        "notes": (*subject.notes, *notes),
        "device": str(processes.device),
        "processes": processes.world,
        "batch_size": request.batch_size,
        "saved_predictions": None if request.save_predictions is None else str(request.save_predictions),
    }


def _reading(request: EvaluateRequest, processes: Processes) -> dict[str, Any]:
    """How this process reads its share of the images."""
    return {
        "batch_size": request.batch_size,
        "workers": request.workers,
        "limit": request.limit,
        "rank": processes.rank,
        "world": processes.world,
    }


def _classes(request: EvaluateRequest, subject: Subject, processes: Processes, progress: Progress) -> EvaluateResult:
    """Figures of a classifier."""
    check_embeds(subject, {"--index-data": request.index, "--against": request.against, "--tokens": request.tokens})
    loader = open_labelled(request.data, subject, **_reading(request, processes))
    saved = SavedPredictions(request.save_predictions, loader)
    rounded = at_widths(subject, request.widths, request.rounding) if request.widths else {}
    names = {bits: "model" if model is subject.model else f"{bits} bits" for bits, model in rounded.items()}
    models = {"model": subject.model} | {names[bits]: model for bits, model in rounded.items()}
    models = {name: model.to(processes.device) for name, model in models.items()}
    found = measure(models, loader, processes, progress, batches=saved)
    saved.write(found["model"].rows, processes)
    return EvaluateResult(
        **dict(found["model"].accuracy),
        **_measured(request, subject, processes, about_data(loader, subject), []),
        widths=tuple(AtWidth(wbits=bits, **dict(found[name].accuracy)) for bits, name in names.items()),
    )


def _named(reference: Subject) -> str:
    return f"{reference.name} ({reference.about['source']})" if reference.kind == "float" else reference.name


def _embeddings(
    request: EvaluateRequest, subject: Subject, processes: Processes, progress: Progress
) -> EvaluateEmbeddingsResult:
    """Figures of embeddings."""
    if request.widths:
        raise ModelError(f"{subject.name}: --wbits measures classifiers at several widths, and it gives embeddings")
    reference, notes = float_model_of(subject, request.against)
    data = open_embedding_data(request.data, request.index, subject, **_reading(request, processes))
    if not data.labelled and reference is None:
        raise DataError(
            f"{data.queries.data.name}: its images have no labels, and there is no float model to compare with, so "
            "there is nothing to measure",
            hint="--against MODEL, or images in one folder for each class",
        )
    if request.tokens and reference is None:
        raise ModelError("--tokens: there is no float model to compare patch tokens with", hint="--against MODEL")
    models = {} if reference is None else {"float": reference.model.to(processes.device)}
    models["model"] = subject.model.to(processes.device)
    saved = SavedPredictions(request.save_predictions, data.queries)
    found = measure_embeddings(models, data, processes, progress, tokens=request.tokens, queries=saved)
    saved.write(found.rows, processes)
    return EvaluateEmbeddingsResult(
        **dict(found.models["model"]),
        **_measured(request, subject, processes, data.about(subject), notes),
        float=found.models.get("float"),
        against=None if reference is None else _named(reference),
        paired=found.paired,
        neighbours=found.neighbours,
    )
