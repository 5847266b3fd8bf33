"""The work of a loader process: decode, label and preprocess images, and collate them into batches."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ofqctl.data.images import ImageData, UnusableImageError, was_turned
from ofqctl.data.sources.source import Record
from ofqctl.errors import DataError

Transform = Callable[[Image.Image], Tensor]


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    name: str
    reason: str


class Sample(NamedTuple):
    """A preprocessed image (C, H, W), its label and name, and whether it was turned as its EXIF orientation says."""

    image: Tensor
    label: int
    name: str
    turned: bool


# Errors are returned as values: DataLoader would hide their messages in a worker's traceback.
Item = Sample | Skipped | DataError


class LoadedBatch(NamedTuple):
    """One loaded batch: images (B, C, H, W), labels (B,) and B names, without the images that were skipped."""

    images: Tensor
    labels: Tensor
    names: list[str]
    skipped: list[Skipped]
    turned: int
    fault: DataError | None


class Samples(Dataset[Item]):
    """Preprocessed images by index."""

    def __init__(self, data: ImageData, transform: Transform) -> None:
        self.data, self.transform = data, transform

    def __getitem__(self, index: int) -> Item:
        try:
            return _loaded(self.data, self.data.record(index), self.transform)
        except DataError as error:
            return error


class StreamedSamples(IterableDataset[Item]):
    """Preprocessed images of a stream.

    Each worker of each process reads all records but decodes only its own batches: processes take the batches in turn,
    and so do the workers of a process with the batches of that process.
    """

    def __init__(
        self,
        data: ImageData,
        transform: Transform,
        batch_size: int,
        limit: int | None,
        seed: int | None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.data, self.transform = data, transform
        self.batch_size, self.limit, self.seed = batch_size, limit, seed
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        count, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker:
            forget_inherited_locks()
        records = islice(self.data.stream(self.seed), self.limit)
        try:
            for number, record in enumerate(records):
                if number // self.batch_size % (count * self.world) == mine * self.world + self.rank:
                    yield _loaded(self.data, record, self.transform)
        except DataError as error:
            yield error


def _loaded(data: ImageData, record: Record, transform: Transform) -> Sample | Skipped:
    try:
        image, label = data.load(record)
    except UnusableImageError as error:
        return Skipped(error.name, error.reason)
    return Sample(transform(image), label, record.name, was_turned(image))


def forget_inherited_locks() -> None:
    """Let a forked process read remote files: it would wait forever for a lock that the parent's reader holds."""
    import fsspec.asyn  # type: ignore[import-untyped]

    fsspec.asyn.reset_lock()


def collate(items: Sequence[Item]) -> LoadedBatch:
    """Stack the samples among ``items``; list skipped images and errors separately."""
    samples = [item for item in items if isinstance(item, Sample)]
    images = torch.stack([sample.image for sample in samples]) if samples else torch.empty(0)
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
    names = [sample.name for sample in samples]
    faults = [item for item in items if isinstance(item, DataError)]
    skipped = [item for item in items if isinstance(item, Skipped)]
    turned = sum(sample.turned for sample in samples)
    return LoadedBatch(images, labels, names, skipped, turned, next(iter(faults), None))
