"""Predict the classes of images, or their embeddings, or those of an array that is already preprocessed."""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ofqctl.data import ImageData, ImageLoader, LabelSpace, image_loader, label_names
from ofqctl.data.sources.files import PassedOver, images_under
from ofqctl.data.sources.source import Record, Source
from ofqctl.devices import DeviceName, pick_device
from ofqctl.documents import UNSUITABLE
from ofqctl.errors import DataError, ModelError
from ofqctl.evaluation import Normalization, Subject, open_subject
from ofqctl.evaluation import predict as outputs_of
from ofqctl.files import output_file, replaced_file
from ofqctl.jobs.embedding_files import embedding_files, write_embeddings
from ofqctl.models import ModelRequest
from ofqctl.progress import Progress, silent
from ofqctl.results.data import SkippedImage
from ofqctl.results.predict import EmbeddedImage, Guess, PredictedImage, PredictEmbeddingsResult, PredictResult


@dataclass(frozen=True)
class PredictRequest:
    """A request to predict classes or embeddings.

    Attributes:
        model: A float model, or the path of a run directory, of the weights file in one, or of an ONNX file.
        images: Image files, and folders, of which all images are used.
        array: A ``.npy`` file with preprocessed float values, (N, 3, H, W), instead of images.
        save_logits: Path of a ``.npy`` file for the logits, float32 (N, classes), or None; replaced if it exists.
        save_embeddings: The same for the embeddings of a model without a classifier, see `write_embeddings`.
        top: Number of labels for each image, >= 1.
        device: Device to compute on.
        batch_size: Number of images in one forward pass, >= 1.
        workers: Number of processes that decode images.
        normalization: Mean and standard deviation of the images, for an ONNX file that does not contain them.
    """

    model: ModelRequest
    images: tuple[Path, ...] = ()
    array: Path | None = None
    save_logits: Path | None = None
    save_embeddings: Path | None = None
    top: int = 5
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0
    normalization: Normalization | None = None


def predict(request: PredictRequest, progress: Progress = silent) -> PredictResult | PredictEmbeddingsResult:
    """Find the most probable labels of each image, or its embedding and the image that is most like it.

    Images that cannot be decoded are skipped and listed.

    Raises:
        DataError: There are no images, a file is missing, the array does not fit the model, or no image can be decoded.
        OfqctlError: The model cannot be used.
    """
    _check(request)
    given = (*request.images, *([request.array] if request.array else []))
    outputs = [request.save_logits, *embedding_files(request.save_embeddings)]
    with ExitStack() as claimed:
        for path in outputs:
            claimed.enter_context(output_file(path, sources=given))
        return _predict(request, progress)


def _predict(request: PredictRequest, progress: Progress) -> PredictResult | PredictEmbeddingsResult:
    device = pick_device(request.device)
    paths, notes = ([], []) if request.array else _image_files(request.images)
    array = _read_array(request.array) if request.array else None
    progress("load the model", 0, None)
    subject = open_subject(request.model, request.normalization)
    _check_saved(request, subject)
    model = subject.model.to(device)
    loader = None
    batches: Iterator[Tensor]
    if array is None:
        loader = _loader(paths, subject, request)
        batches, total = (images for images, _ in loader), len(paths)
    else:
        _check_fits(array, subject, str(request.array))
        batches, total = iter(torch.split(torch.from_numpy(array), request.batch_size)), len(array)
    everything = _outputs(model, batches, total, device, progress)
    skipped = {} if loader is None else {image.name: image.reason for image in loader.skipped}
    names = [str(path) for path in paths if str(path) not in skipped]
    names = names or [f"{request.array}[{index}]" for index in range(total)]
    if request.save_logits is not None:
        with replaced_file(request.save_logits) as fresh, fresh.open("wb") as file:
            np.save(file, everything.numpy())
    if request.save_embeddings is not None:
        write_embeddings(request.save_embeddings, everything, names)
    about: dict[str, Any] = {
        "model": subject.name,
        "kind": subject.kind,
        "recipe": subject.about.get("recipe"),
        "skipped": tuple(SkippedImage(image=name, reason=reason) for name, reason in skipped.items()),
        "turned": 0 if loader is None else loader.turned,
        "notes": (*subject.notes, *notes),
        "device": str(device),
    }
    if subject.embeds:
        return PredictEmbeddingsResult(
            images=_neighboured(everything, names, listed=request.save_embeddings is None),
            saved_embeddings=None if request.save_embeddings is None else str(request.save_embeddings),
            **about,
        )
    return PredictResult(
        images=_ranked(everything, names, subject.labels, request.top),
        saved_logits=None if request.save_logits is None else str(request.save_logits),
        **about,
    )


def _outputs(
    model: nn.Module, batches: Iterator[Tensor], total: int, device: torch.device, progress: Progress
) -> Tensor:
    """Logits or embeddings, float32 (images, classes or features), on the CPU."""
    outputs: list[Tensor] = []
    done = 0
    progress("predict", done, total)
    for images in batches:
        outputs.append(outputs_of(model, images.to(device)).cpu())
        done += len(images)
        progress("predict", done, total)
    return torch.cat(outputs)


def _check(request: PredictRequest) -> None:
    if bool(request.images) == (request.array is not None):
        seen = "both were" if request.images else "none was"
        raise DataError(
            f"predict: either images or --array are needed; {seen} given",
            hint="ofqctl predict MODEL image.jpg",
        )
    for name, value in (("--top", request.top), ("--batch-size", request.batch_size)):
        if value < 1:
            raise DataError(f"{name}: {value} is too small; at least 1 is allowed")


def _check_saved(request: PredictRequest, subject: Subject) -> None:
    """Check that what is to be saved is what the model gives.

    Raises:
        ModelError: It is not.
    """
    if subject.embeds and request.save_logits is not None:
        raise ModelError(
            f"--save-logits: {subject.name} has no classifier, so it gives embeddings", hint="--save-embeddings FILE"
        )
    if not subject.embeds and request.save_embeddings is not None:
        raise ModelError(
            f"--save-embeddings: {subject.name} has a classifier, so it gives logits",
            hint="--features leaves the classifier of a float model out; --save-logits FILE",
        )


def _image_files(given: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The given files and the images in given folders, sorted by name, and notes on what was left out."""
    paths: list[Path] = []
    notes: list[str] = []
    for path in given:
        if path.is_dir():
            passed = PassedOver()
            found = sorted(Path(image) for image in images_under(path, passed))
            if not found:
                raise DataError(f"{path}: no images in this folder")
            paths += found
            notes += passed.notes(path)
        elif path.is_file():
            paths.append(path)
        else:
            raise DataError(f"{path}: no such image file")
    return paths, notes


def _loader(paths: Sequence[Path], subject: Subject, request: PredictRequest) -> ImageLoader:
    records = [Record(str(path), str(path), None) for path in paths]
    source = Source("the images given", records, None, None)
    return image_loader(
        ImageData(source, None, subject.labels),
        subject.data_config,
        batch_size=request.batch_size,
        workers=request.workers,
    )


def _read_array(path: Path) -> NDArray[np.float32]:
    """Read the values of a ``.npy`` file as float32; no code in the file is executed."""
    try:
        array = np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (*UNSUITABLE, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: not a .npy file of plain numbers, or truncated: {error}",
            hint="numpy.save('x.npy', images.astype('float32')) writes one",
        ) from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: contains several arrays; allowed is one, as written by numpy.save")
    if array.dtype.kind != "f":
        raise DataError(
            f"{path}: values of type {array.dtype}; allowed are float32, float16 and float64",
            hint="the array must be the result of the model's preprocessing; pixels are given as image files",
        )
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise DataError(f"{path}: {bad} of its {array.size} values are NaN or infinite; allowed: finite values")
    return np.ascontiguousarray(array, dtype=np.float32)


def _check_fits(array: NDArray[np.float32], subject: Subject, where: str) -> None:
    size = tuple(subject.data_config["input_size"])
    if array.ndim != 4 or array.shape[1:] != size or not len(array):
        wanted = ", ".join(str(length) for length in size)
        raise DataError(f"{where}: shape {array.shape}; {subject.name} takes (N, {wanted}) with N >= 1")


def _neighboured(rows: Tensor, names: Sequence[str], *, listed: bool) -> tuple[EmbeddedImage, ...]:
    """Length of each embedding and the other image that is most like it, by the cosine.

    Args:
        rows: Embeddings, (N, D).
        names: Names of the images.
        listed: Whether the embeddings themselves are given.
    """
    unit = torch.nn.functional.normalize(rows, dim=1)
    found = []
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        cosines = unit @ unit[place]
        cosines[place] = -torch.inf
        nearest = int(cosines.argmax())
        found.append(
            EmbeddedImage(
                image=name,
                features=len(row),
                length=float(row.norm()),
                nearest=names[nearest] if len(names) > 1 else None,
                cosine=float(cosines[nearest]) if len(names) > 1 else None,
                embedding=tuple(row.tolist()) if listed else None,
            )
        )
    return tuple(found)


def _ranked(logits: Tensor, names: Sequence[str], labels: LabelSpace, top: int) -> tuple[PredictedImage, ...]:
    words = label_names(labels)
    best = logits.softmax(dim=1).topk(min(top, logits.shape[1]), dim=1)
    return tuple(
        PredictedImage(
            image=name,
            top=tuple(
                Guess(label=label, name=words[label], probability=probability)
                for label, probability in zip(row_labels, row_values, strict=True)
            ),
        )
        for name, row_labels, row_values in zip(names, best.indices.tolist(), best.values.tolist(), strict=True)
    )
