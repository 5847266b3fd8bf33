"""Soft labels: draw crops of images, and write what a teacher says of each."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import Dataset

from ofqctl.data import DataSpec, ImageData, Skipped, UnusableImageError, open_data
from ofqctl.data.workers import load_batches
from ofqctl.devices import DeviceName, pick_device
from ofqctl.distill import AboutSoftLabels, SoftLabels, weights_digest
from ofqctl.errors import DataError, ModelError, RecipeError
from ofqctl.evaluation import Subject, open_subject
from ofqctl.files import output_file
from ofqctl.models import ModelRequest
from ofqctl.progress import Progress, silent
from ofqctl.recipe import Recipe
from ofqctl.recipe.training import Augmentation
from ofqctl.results.data import SkippedImage
from ofqctl.results.distill_cache import DistillCacheResult
from ofqctl.training.augmentation import StoredCrops, seeded

_box_of: Any = RandomResizedCropAndInterpolation.get_params


@dataclass(frozen=True)
class DistillCacheRequest:
    """A request to write soft labels.

    Attributes:
        teacher: The float model, or run, whose predictions are stored.
        recipe: A recipe with a training part, which says how crops are drawn.
        data: Training images.
        output: The file to write; replaced if it exists.
        views: Number of crops of each image.
        top: Number of classes whose probability is stored.
        seed: Seed of the crops.
        device: Device to compute on.
        batch_size: Number of crops in one forward pass.
        workers: Number of processes that decode images.
    """

    teacher: ModelRequest
    recipe: Recipe
    data: DataSpec
    output: Path
    views: int = 32
    top: int = 5
    seed: int = 0
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0


def distill_cache(request: DistillCacheRequest, progress: Progress = silent) -> DistillCacheResult:
    """Write soft labels for `TrainRequest.soft_labels`.

    Raises:
        OfqctlError: The teacher or the images cannot be used, or the file cannot be written.
    """
    if request.recipe.training is None:
        raise RecipeError(
            f"recipe '{request.recipe.name}': has no training part, which says how crops are drawn",
            hint="`ofqctl recipe ls` shows which have one",
        )
    with output_file(request.output, sources=[*request.teacher.paths, Path(request.data.path)]):
        return _write(request, request.recipe.training.augmentation, progress)


def _write(request: DistillCacheRequest, augmentation: Augmentation, progress: Progress) -> DistillCacheResult:
    started = time.perf_counter()
    progress("load the model", 0, None)
    teacher = open_subject(request.teacher)
    if teacher.embeds or teacher.kind == "onnx":
        what = "gives embeddings" if teacher.embeds else "is an ONNX file"
        raise ModelError(f"{teacher.name}: {what}; the teacher of soft labels is a classifier by name, or a run")
    data = open_data(request.data, teacher.labels, "train")
    if data.streaming:
        raise DataError(f"{data.name}: is streamed, so its images have no numbers to store labels under")
    device = pick_device(request.device)
    model = teacher.model.to(device)
    labels = _empty(request, teacher, data, augmentation)
    skipped: dict[int, Skipped] = {}
    progress("ask the teacher", 0, len(data) * request.views)
    for images, places in _batches(request, teacher, data, labels):
        if isinstance(images, Skipped):
            skipped[places] = images
            continue
        with torch.inference_mode():
            found = model(images.to(device)).float().softmax(dim=1).topk(labels.about.top, dim=1)
        rows, views = places[:, 0], places[:, 1]
        labels.boxes[rows, views] = places[:, 2:6].to(torch.int32)
        labels.flips[rows, views] = places[:, 6].to(torch.bool)
        labels.likely[rows, views] = found.indices.to("cpu", torch.int32)
        labels.probabilities[rows, views] = found.values.to("cpu", torch.float16)
        progress("ask the teacher", int(rows[-1]) * request.views + int(views[-1]) + 1, len(data) * request.views)
    if len(skipped) == len(data):
        raise DataError(f"{data.name}: no image can be used; the first, {skipped[0].name}, {skipped[0].reason}")
    labels.write(request.output)
    crops = (len(data) - len(skipped)) * request.views
    return DistillCacheResult(
        output=str(request.output),
        teacher=teacher.name,
        recipe=request.recipe.name,
        data=data.name,
        images=len(data) - len(skipped),
        views=request.views,
        top=labels.about.top,
        covered=round(float(labels.probabilities.double().sum()) / crops, 4),
        bytes=request.output.stat().st_size,
        skipped=tuple(SkippedImage(image=one.name, reason=one.reason) for one in skipped.values()),
        notes=(*teacher.notes, *data.notes),
        seconds=round(time.perf_counter() - started, 2),
    )


def _empty(request: DistillCacheRequest, teacher: Subject, data: ImageData, augmentation: Augmentation) -> SoftLabels:
    """Soft labels that are still to be filled."""
    classes = teacher.labels.num_classes
    about = AboutSoftLabels(
        teacher=teacher.name,
        teacher_digest=weights_digest(teacher.model),
        data=data.identity,
        input_size=tuple(teacher.data_config["input_size"]),
        interpolation=teacher.data_config["interpolation"],
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        views=request.views,
        top=min(request.top, classes),
        classes=classes,
        seed=request.seed,
    )
    shape = (len(data), about.views)
    return SoftLabels(
        about,
        torch.zeros(*shape, 4, dtype=torch.int32),
        torch.zeros(shape, dtype=torch.bool),
        torch.zeros(*shape, about.top, dtype=torch.int32),
        torch.zeros(*shape, about.top, dtype=torch.float16),
    )


def _batches(
    request: DistillCacheRequest, teacher: Subject, data: ImageData, labels: SoftLabels
) -> Iterator[tuple[Any, Any]]:
    """Crops (B, 3, H, W) with their places, (B, 7): image, view, box and mirroring; or an image that is left out."""
    views = _Views(data, labels, teacher.data_config, request.seed, min(request.views, request.batch_size))
    size = 4 * torch.Size(teacher.data_config["input_size"]).numel() * views.chunk
    yield from load_batches(views, workers=request.workers, batch_bytes=size, batch_size=None)


class _Views(Dataset[tuple[Any, Any]]):
    """The crops of an image, ``chunk`` at a time, so that many views need no more memory."""

    def __init__(self, data: ImageData, labels: SoftLabels, config: dict[str, Any], seed: int, chunk: int) -> None:
        self.data, self.about, self.seed, self.chunk = data, labels.about, seed, chunk
        self._cut = StoredCrops(labels, config, crops=1)
        self._parts = -(-self.about.views // chunk)

    def __len__(self) -> int:
        return len(self.data) * self._parts

    def __getitem__(self, place: int) -> tuple[Tensor | Skipped, Tensor | int]:
        number, part = divmod(place, self._parts)
        try:
            image, _ = self.data[number]
        except UnusableImageError as error:
            return Skipped(error.name, error.reason), number
        crops, places = [], []
        for view in range(part * self.chunk, min(self.about.views, (part + 1) * self.chunk)):
            with seeded((self.seed * 1_000_003 + number) * 1_000_003 + view):
                box = _box_of(image, self.about.scale, self.about.ratio)
                mirrored = bool(torch.rand(()) < self.about.hflip)
            crops.append(self._cut.cut(image, box, mirrored=mirrored))
            places.append([number, view, *box, int(mirrored)])
        return torch.stack(crops), torch.tensor(places)
