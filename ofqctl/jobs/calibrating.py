"""The calibration images of a job, and their description."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ofqctl.data import DataSpec, ImageLoader, image_loader, open_data, synthetic_images
from ofqctl.devices import denormals_flushed, suited_threads
from ofqctl.errors import ModelError
from ofqctl.evaluation import Subject
from ofqctl.progress import Progress
from ofqctl.ptq import Batches, fitted_images, on_disk
from ofqctl.recipe.schema import Calibration
from ofqctl.results.data import CalibratedOn

SYNTHETIC = (
    "calibrated on synthetic images: do not expect accuracy; give --calib-data, "
    "or fit them to the model with --set calibration.fitting=60"
)
FITTED = "calibrated on synthetic images that were fitted to the model; --calib-data gives more accuracy"
_SHOWN = 3


@dataclass
class CalibrationImages:
    """Calibration images, on disk while the job runs.

    Attributes:
        batches: Normalized images, (B, 3, H, W) each.
        about: Their description for the result.
        notes: What was guessed or is missing, one sentence each.
    """

    batches: Batches
    about: CalibratedOn
    notes: list[str] = field(default_factory=list)


@contextmanager
def calibration_images(
    spec: DataSpec | Iterable[Tensor] | None,
    wanted: Calibration,
    subject: Subject,
    device: torch.device,
    progress: Progress,
    *,
    seed: int,
    workers: int,
) -> Iterator[CalibrationImages]:
    """Read as many images as wanted, drawn with ``seed``; without ``spec``, create synthetic images.

    Batches of normalized images are taken as they come.

    Raises:
        DataError: There are no images, or they cannot be read.
        ModelError: Memory ran out while they were used; the message names options that reduce it.
    """
    source: Iterator[Tensor]
    if spec is None:
        name, notes, loader = "synthetic", [FITTED if wanted.fitting else SYNTHETIC], None
        source = _synthetic(subject, wanted, device, progress, seed)
    elif not isinstance(spec, DataSpec):
        name, notes, loader = "the images given", [], None
        source = _first(spec, wanted.images)
    else:
        data = open_data(spec, purpose="calibrate")
        name, notes = data.name, list(data.notes)
        loader = image_loader(
            data, subject.data_config, batch_size=wanted.batch_size, workers=workers, limit=wanted.images, seed=seed
        )
        source = (images for images, _ in loader)
    with on_disk(_told(source, wanted.images, progress), device) as batches, _memory_explained():
        if batches.images < wanted.images:
            notes.append(f"calibration: {name} has {batches.images} images, {wanted.images} were requested")
        about = CalibratedOn(data=name, images=batches.images, turned=0 if loader is None else loader.turned)
        yield CalibrationImages(batches, about, [*notes, *_unreadable(loader)])


def _synthetic(
    subject: Subject, wanted: Calibration, device: torch.device, progress: Progress, seed: int
) -> Iterator[Tensor]:
    """Noise, or images fitted to the model."""
    noise = synthetic_images(subject.data_config, wanted.images, wanted.batch_size, seed)
    if not wanted.fitting:
        yield from noise
        return
    model = subject.model.to(device)
    sizes = [len(batch) for batch in noise]
    with denormals_flushed(device), suited_threads(model):
        yield from fitted_images(model, subject.data_config, sizes, wanted.fitting, seed, progress)


def _first(batches: Iterable[Tensor], images: int) -> Iterator[Tensor]:
    """The first ``images`` of the batches."""
    taken = 0
    for batch in batches:
        yield batch[: images - taken]
        taken += len(batch)
        if taken >= images:
            return


def _unreadable(loader: ImageLoader | None) -> list[str]:
    """A note that names calibration images that could not be read."""
    skipped = [] if loader is None else loader.skipped
    if not skipped:
        return []
    named = "; ".join(f"{image.name} {image.reason}" for image in skipped[:_SHOWN])
    more = f"; and {len(skipped) - _SHOWN} more" if len(skipped) > _SHOWN else ""
    return [f"calibration: {len(skipped)} images were skipped: {named}{more}"]


def _told(images: Iterator[Tensor], total: int, progress: Progress) -> Iterator[Tensor]:
    done = 0
    progress("read calibration images", 0, total)
    for batch in images:
        yield batch
        done += len(batch)
        progress("read calibration images", done, total)


@contextmanager
def _memory_explained() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        told = str(error)
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in told:
            raise
        raise ModelError(
            f"out of memory: {told.splitlines()[0] if told else 'there is none left'}",
            hint="--set calibration.batch_size=8 reduces it, and so does ptq.N.batch_size of a stage that has one",
        ) from error
