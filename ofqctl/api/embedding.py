"""``ofqctl.evaluate_embeddings``."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from ofqctl.api.images import batches_and_labels, check_have_names
from ofqctl.api.module import subject_of
from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName, pick_device
from ofqctl.errors import DataError, ModelError
from ofqctl.evaluation import Embeddings, compare_embeddings, embed
from ofqctl.jobs.evaluate import EvaluateRequest
from ofqctl.jobs.evaluate import evaluate as run
from ofqctl.progress import Progress, silent
from ofqctl.results.embeddings import EmbeddingFigures
from ofqctl.results.evaluate import EvaluateEmbeddingsResult

Batches = Iterable[Tensor | tuple[Tensor, Tensor]]


@overload
def evaluate_embeddings(
    model: str | Path | nn.Module,
    data: str | Path,
    *,
    index: str | Path | None = None,
    against: str | Path | nn.Module | None = None,
    tokens: bool = False,
    limit: int | None = None,
    device: DeviceName = "auto",
    batch_size: int = 64,
    workers: int = 0,
    save_predictions: str | Path | None = None,
    progress: Progress = silent,
) -> EvaluateEmbeddingsResult: ...


@overload
def evaluate_embeddings(
    model: str | Path | nn.Module,
    data: Batches,
    *,
    index: Batches | None = None,
    against: str | Path | nn.Module | None = None,
    tokens: bool = False,
    device: DeviceName = "auto",
    progress: Progress = silent,
) -> EmbeddingFigures: ...


def evaluate_embeddings(
    model: str | Path | nn.Module,
    data: str | Path | Iterable[Any],
    *,
    index: str | Path | Iterable[Any] | None = None,
    against: str | Path | nn.Module | None = None,
    tokens: bool = False,
    limit: int | None = None,
    device: DeviceName = "auto",
    batch_size: int = 64,
    workers: int = 0,
    save_predictions: str | Path | None = None,
    progress: Progress = silent,
) -> EmbeddingFigures:
    """Measure a model without a classifier; a model in memory is copied.

    Args:
        model: A name or path as :func:`ofqctl.load` takes it, or a model in memory.
        data: Images: a path as the commands take it, or what gives batches of normalized images, (B, 3, H, W), or pairs
            of these and labels, (B,). Labels are needed for neighbours alone.
        index: Labelled images that those of ``data`` are looked up among; None takes the others of ``data``.
        against: The float model that embeddings are compared with. None takes, for a path, the one that a run was made
            from, if it is there; else nothing is compared.
        tokens: Whether patch tokens are compared as well as embeddings.
        limit: Number of images of a path to read, drawn from all; None reads all.
        device: Device to compute on.
        batch_size: Number of images of a path in one forward pass.
        workers: Number of processes that decode the images of a path.
        save_predictions: Path of a ``.csv`` or ``.parquet`` file for a row for each image of a path, in the order in
            which they are read; replaced if it exists.
        progress: Called to report progress.

    Returns:
        The figures; for a path beside those of the float model, with what they were measured on.

    Raises:
        OfqctlError: The model has a classifier; the model or the data cannot be used, or they do not match.
    """
    subject = subject_of(model)
    if not subject.embeds:
        raise ModelError(
            f"evaluate_embeddings: {subject.name} has a classifier",
            hint="ofqctl.load(name, features=True) leaves it out, ofqctl.evaluate measures classes",
        )
    reference = None if against is None else subject_of(against)
    if isinstance(data, str | Path):
        among = None if index is None else DataSpec(str(_as_path(index)))
        asked: dict[str, Any] = {"index": among, "against": reference, "tokens": tokens}
        asked["save_predictions"] = None if save_predictions is None else Path(save_predictions)
        request = EvaluateRequest(subject, DataSpec(str(data)), limit, device, batch_size, workers, **asked)
        result = run(request, progress)
        assert isinstance(result, EvaluateEmbeddingsResult)
        return result
    check_have_names(save_predictions)
    place = pick_device(device)
    models = {} if reference is None else {"float": reference.model.to(place)}
    models["model"] = subject.model.to(place)
    found, labelled = _embedded(models, data, "data", place, progress, tokens=tokens)
    if index is None:
        return compare_embeddings(found, labelled=labelled).models["model"]
    others, complete = _embedded(models, _as_batches(index), "index", place, progress)
    return compare_embeddings(found, labelled=labelled and complete, index=others).models["model"]


def _as_path(index: str | Path | Iterable[Any]) -> str | Path:
    if not isinstance(index, str | Path):
        raise DataError("index: is no path, and data is one; allowed: two paths, or batches for both")
    return index


def _as_batches(index: str | Path | Iterable[Any]) -> Iterable[Any]:
    if isinstance(index, str | Path):
        raise DataError(f"index: {index} is a path, and data is none; allowed: two paths, or batches for both")
    return index


def _embedded(
    models: dict[str, nn.Module],
    images: Iterable[Any],
    what: str,
    device: torch.device,
    progress: Progress,
    *,
    tokens: bool = False,
) -> tuple[dict[str, Embeddings], bool]:
    """Embeddings of batches, and whether all of these have labels."""
    labelled = []

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for batch, labels in batches_and_labels(images, what):
            labelled.append(labels is not None)
            yield batch, torch.full((len(batch),), -1) if labels is None else labels

    return embed(models, pairs(), device=device, progress=progress, tokens=tokens), all(labelled)
