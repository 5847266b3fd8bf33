"""``ofqctl.evaluate``."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from ofqctl.api.images import check_have_names, labelled_batches
from ofqctl.api.module import subject_of
from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName, pick_device
from ofqctl.errors import ModelError
from ofqctl.evaluation import Subject
from ofqctl.evaluation import evaluate as measured
from ofqctl.hooks import in_evaluation_mode
from ofqctl.jobs.evaluate import EvaluateRequest
from ofqctl.jobs.evaluate import evaluate as run
from ofqctl.models import embeds
from ofqctl.progress import Progress, silent
from ofqctl.results.accuracy import Accuracy
from ofqctl.results.evaluate import EvaluateResult

Pairs = Iterable[tuple[Tensor, Tensor]]


@overload
def evaluate(
    model: str | Path | nn.Module,
    data: str | Path,
    *,
    input_size: tuple[int, int, int] | None = None,
    limit: int | None = None,
    device: DeviceName = "auto",
    batch_size: int = 64,
    workers: int = 0,
    save_predictions: str | Path | None = None,
    wbits: Sequence[int] = (),
    progress: Progress = silent,
) -> EvaluateResult: ...


@overload
def evaluate(
    model: str | Path | nn.Module, data: Pairs, *, device: DeviceName = "auto", progress: Progress = silent
) -> Accuracy: ...


def evaluate(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any],
    *,
    input_size: tuple[int, int, int] | None = None,
    limit: int | None = None,
    device: DeviceName = "auto",
    batch_size: int = 64,
    workers: int = 0,
    save_predictions: str | Path | None = None,
    wbits: Sequence[int] = (),
    progress: Progress = silent,
) -> Accuracy:
    """Measure top-1, top-5, loss and speed of a model; a model in memory is left as it is.

    Args:
        model: A name or path as :func:`ofqctl.load` takes it, or a model in memory.
        data: Labelled images: a path as the commands take it, or what gives pairs of normalized images, (B, 3, H, W),
            and labels, (B,), such as a DataLoader.
        input_size: Size of one image, (channels, H, W), of a float model in memory that reads a path; None takes what
            timm says of it.
        limit: Number of images of a path to read, drawn from all; None reads all.
        device: Device to compute on; with pairs, a model in memory stays where it is.
        batch_size: Number of images of a path in one forward pass.
        workers: Number of processes that decode the images of a path.
        save_predictions: Path of a ``.csv`` or ``.parquet`` file for a row for each image of a path, in the order in
            which they are read; replaced if it exists.
        wbits: Bits that the weights are rounded to as well, as ``evaluate --wbits`` does; for a path.
        progress: Called to report progress.

    Returns:
        The figures; for a path with what they were measured on.

    Raises:
        OfqctlError: The model or the data cannot be used, or they do not match; or the model gives embeddings.
    """
    if isinstance(data, str | Path):
        request = EvaluateRequest(
            _classifier(model, input_size),
            DataSpec(str(data)),
            limit,
            device,
            batch_size,
            workers,
            save_predictions=None if save_predictions is None else Path(save_predictions),
            widths=tuple(wbits),
        )
        result = run(request, progress)
        assert isinstance(result, EvaluateResult)
        return result
    check_have_names(save_predictions)
    pairs = labelled_batches(data, "data")
    if isinstance(model, nn.Module):
        _check_classes(embeds(model))
        with in_evaluation_mode(model):
            return _measured(model, pairs, _device_of(model), progress)
    place = pick_device(device)
    return _measured(_classifier(model).model.to(place), pairs, place, progress)


def _classifier(model: str | Path | nn.Module, input_size: tuple[int, int, int] | None = None) -> Subject:
    subject = subject_of(model, input_size)
    _check_classes(subject.embeds)
    return subject


def _check_classes(embeds: bool) -> None:
    if embeds:
        raise ModelError(
            "evaluate: measures classes, and this model gives embeddings",
            hint="ofqctl.evaluate_embeddings(model, data)",
        )


def _measured(
    model: nn.Module, pairs: Iterable[tuple[Tensor, Tensor]], device: torch.device, progress: Progress
) -> Accuracy:
    return measured({"model": model}, pairs, device=device, progress=progress)["model"].accuracy


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
