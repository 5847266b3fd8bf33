"""Measure a float model, a run directory or an ONNX file on labelled images."""

from dataclasses import dataclass

from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName, pick_device
from ofqctl.evaluation import Normalization, Subject, open_subject
from ofqctl.jobs.measuring import about_data, measure, open_labelled
from ofqctl.models import ModelRequest
from ofqctl.progress import Progress, silent
from ofqctl.results.evaluate import EvaluateResult
from ofqctl.training import Processes, joined


@dataclass(frozen=True)
class EvaluateRequest:
    """A request to measure a model on data.

    Attributes:
        model: A float model, or the path of a run directory, of the weights file in one, or of an ONNX file; or what
            was opened already.
        data: Labelled images.
        limit: Number of images to read, drawn from the whole set; None reads all.
        device: Device to compute on.
        batch_size: Number of images in one forward pass.
        workers: Number of processes that decode images.
        normalization: Mean and standard deviation of the images, for an ONNX file that does not contain them.
    """

    model: ModelRequest | Subject
    data: DataSpec
    limit: int | None = None
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0
    normalization: Normalization | None = None


def evaluate(request: EvaluateRequest, progress: Progress = silent) -> EvaluateResult:
    """Measure top-1 and top-5 in percent, mean loss in nats and images per second.

    Processes that ``torchrun`` started share the images; each returns the figures of all images.

    Raises:
        OfqctlError: The model or the data cannot be used, or they do not match.
    """
    with joined(pick_device(request.device)) as processes:
        return _evaluate(request, processes, progress)


def _evaluate(request: EvaluateRequest, processes: Processes, progress: Progress) -> EvaluateResult:
    progress("load the model", 0, None)
    given = request.model
    subject = given if isinstance(given, Subject) else open_subject(given, request.normalization)
    loader = open_labelled(
        request.data,
        subject,
        batch_size=request.batch_size,
        workers=request.workers,
        limit=request.limit,
        rank=processes.rank,
        world=processes.world,
    )
    figures = measure({"model": subject.model.to(processes.device)}, loader, processes, progress)["model"]
    about = dict(about_data(loader, subject))
    about["skipped"] = [image for share in processes.gather(about["skipped"]) for image in share]
    about["turned"] = sum(processes.gather(about["turned"]))
    return EvaluateResult(
        model=subject.name,
        kind=subject.kind,
        recipe=subject.about.get("recipe"),
        **dict(figures),
        **about,
        notes=tuple(subject.notes),
        device=str(processes.device),
        processes=processes.world,
        batch_size=request.batch_size,
    )
