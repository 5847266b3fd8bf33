"""Training batches: the images of each optimizer step and their augmentation, determined by the seed alone.

Order and augmentation of an image depend on (seed, epoch, position), never on workers or interruptions: the batches of
step k are the same in a resumed run. Only the distribution of a stream's files depends on the number of processes.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, count, islice, repeat
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate, get_worker_info

from ofqctl.data import Batch, ImageData, Skipped, UnusableImageError
from ofqctl.data.samples import forget_inherited_locks
from ofqctl.data.sources.source import Record
from ofqctl.data.workers import load_batches
from ofqctl.distill import SoftLabels
from ofqctl.errors import DataError
from ofqctl.recipe.training import Training
from ofqctl.training.augmentation import Crop, DrawnCrops, StoredCrops, training_transform

Place = tuple[int, int, int]  # epoch, position in the epoch, index of the image

_TOLERATED = 0.1  # of the images may be unusable
_TRIES = 100  # images in a row that may be unusable


@dataclass(frozen=True)
class Share:
    """The part of a batch that one process takes.

    Attributes:
        batch_size: Number of images in one optimizer step, over all processes.
        micro_batches: Number of forward passes of each process in one optimizer step.
        rank: Rank of this process.
        world: Number of processes.
    """

    batch_size: int
    micro_batches: int = 1
    rank: int = 0
    world: int = 1

    @property
    def passes(self) -> int:
        """Number of forward passes in one optimizer step, over all processes."""
        return self.world * self.micro_batches

    @property
    def images(self) -> int:
        """Number of images in one forward pass of this process."""
        return self.batch_size // self.passes


class TrainingBatches:
    """Micro-batches of an epoch, starting from any optimizer step.

    Images with an index are drawn in a new order every epoch. A stream is shuffled by file and within a buffer; each
    process reads its own part of it, and starts over if that ends before the epoch does. To continue within an epoch, a
    stream is read from its start, and images already seen are skipped without decoding. In place of an image that
    cannot be used, the next one is taken; training ends when a tenth of all cannot be used.

    Args:
        data: Labelled images.
        config: The model's data config.
        training: Says the augmentation and the optimizer steps of an epoch.
        share: The part of a batch that this process takes.
        seed: Seed of order and augmentation.
        workers: Number of loader processes.
        labels: Soft labels, whose crops are trained on; None draws crops as the recipe says.

    Attributes:
        steps_per_epoch: Number of optimizer steps in an epoch.
        skipped: The images that could not be used so far, each with the reason; for a stream, those of this epoch.

    Raises:
        DataError: There are too few images, their number is unknown, or a batch cannot be divided evenly.
    """

    def __init__(
        self,
        data: ImageData,
        config: dict[str, Any],
        training: Training,
        share: Share,
        *,
        seed: int,
        workers: int = 0,
        labels: SoftLabels | None = None,
    ) -> None:
        augmentation = training.augmentation
        _check_share(share, augmentation.crops, mixed=augmentation.mixup > 0.0 or augmentation.cutmix > 0.0)
        self.data, self.share, self.seed, self.workers = data, share, seed, workers
        self.repeats = max(1, augmentation.repeats)
        self._decoded = replace(share, batch_size=share.batch_size // augmentation.crops)
        self.steps_per_epoch = _steps(data, self._decoded.batch_size, training.steps_per_epoch)
        self._stored = None if labels is None else StoredCrops(labels, config, augmentation.crops)
        drawn = DrawnCrops(training_transform(config, augmentation), seed, augmentation.crops)
        self._augmented = _Augmented(data, self._stored or drawn, seed, augmentation.crops)
        self._batch_bytes = 4 * math.prod(config["input_size"]) * share.images
        self.skipped: dict[str, str] = {}

    @property
    def labelled(self) -> bool:
        """Whether the images have labels."""
        return self.data.labelled

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """Micro-batches of an epoch from optimizer step ``first_step`` on, ``share.micro_batches`` for each step.

        Raises:
            DataError: Too many images cannot be used, or a class is unknown.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        source: dict[str, Any] = {}
        if self.data.streaming:
            each = self._decoded.micro_batches * self._decoded.images
            places = range(first_step * each, self.steps_per_epoch * each)
            if first_step == 0:
                self.skipped = {}  # images of a stream are named by their place in the epoch
            source["dataset"] = _Streamed(self._augmented, self._decoded, self.repeats, epoch, places)
            source["batch_size"] = self._decoded.images
        else:
            source["dataset"] = self._augmented
            source["batch_sampler"] = self._drawn(epoch, first_step, generator)
        # with its own generator, creating the loader does not advance the one that dropout uses
        options = {"workers": self.workers, "batch_bytes": self._batch_bytes, "generator": generator}
        for loaded in load_batches(source.pop("dataset"), **source, **options, collate_fn=_collate):
            if isinstance(loaded, DataError):
                raise loaded
            batch, skipped = loaded
            self._count(skipped)
            yield batch if self._stored is None else replace(batch, targets=self._stored.answers(batch, epoch))

    def _count(self, skipped: Iterable[Skipped]) -> None:
        """Add images to those that could not be used, which must not become too many."""
        self.skipped.update(skipped)
        there = self.data.image_count or self.steps_per_epoch * self._decoded.batch_size
        if len(self.skipped) > max(1, _TOLERATED * there):
            raise _too_many(self.data, [Skipped(name, reason) for name, reason in self.skipped.items()])

    def _drawn(self, epoch: int, first_step: int, generator: torch.Generator) -> list[list[Place]]:
        """The images in each of this process's micro-batches, for data with an index."""
        order = torch.randperm(len(self.data), generator=generator)
        order = order.repeat_interleave(self.repeats)[: len(self.data)]
        share = self._decoded
        used = order[: self.steps_per_epoch * share.batch_size]
        steps = used.view(self.steps_per_epoch, share.micro_batches, share.world, share.images)
        positions, rank = torch.arange(len(used)).view_as(steps), share.rank
        return [
            [(epoch, int(p), int(i)) for p, i in zip(places, indices, strict=True)]
            for step in range(first_step, self.steps_per_epoch)
            for places, indices in zip(positions[step, :, rank], steps[step, :, rank], strict=True)
        ]


@dataclass
class SameBatch:
    """The same batch at every optimizer step, to measure steps with.

    Attributes:
        batch: The batch, labelled.
        steps_per_epoch: Number of optimizer steps in an epoch.
    """

    batch: Batch
    steps_per_epoch: int
    labelled: bool = True
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def share(self) -> Share:
        """All of it."""
        return Share(len(self.batch))

    def epoch(self, _epoch: int, first_step: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from optimizer step ``first_step`` on."""
        return repeat(self.batch, self.steps_per_epoch - first_step)


def _check_share(share: Share, crops: int, *, mixed: bool) -> None:
    if share.batch_size % share.passes:
        raise DataError(f"batch size {share.batch_size}: cannot be divided evenly into {share.passes} forward passes")
    if share.images % crops:
        raise DataError(
            f"batch size {share.batch_size}: {share.images} images in a forward pass are not crops of whole images, "
            f"{crops} of each",
            hint="--set training.batch_size=N, a multiple of augmentation.crops in every forward pass",
        )
    if mixed and share.images % 2:
        raise DataError(
            f"batch size {share.batch_size}: {share.images} images in a forward pass cannot be mixed in pairs",
            hint="--set training.batch_size=N, so that every forward pass has an even number",
        )


def _steps(data: ImageData, batch_size: int, wanted: int | None) -> int:
    """Number of optimizer steps in an epoch."""
    there = data.image_count
    if there is None and wanted is None:
        raise DataError(
            f"{data.name}: the stream does not say how many images it has, so the length of an epoch is unknown",
            hint="--set training.steps_per_epoch=N",
        )
    if there is not None and there < batch_size:
        raise DataError(
            f"{data.name}: {there} images are fewer than the batch of {batch_size}", hint="--set training.batch_size=N"
        )
    if there is not None and wanted is not None and wanted * batch_size > there:
        raise DataError(
            f"{data.name}: {wanted} steps of {batch_size} images are more than its {there}",
            hint=f"--set training.steps_per_epoch={there // batch_size}",
        )
    return wanted or (there or 0) // batch_size


# crops (crops, 3, H, W), label, number of the image, and the images that could not be used in its place; errors are
# values, as workers hide messages in tracebacks
Item = tuple[Tensor, int, int, list[Skipped]] | DataError
Candidate = tuple[int, Callable[[], tuple[Image.Image, int]]]  # number of an image, and what loads it


class _Augmented(Dataset[Item]):
    """Augmented images by place."""

    def __init__(self, data: ImageData, crop: Callable[[Image.Image, Crop], Tensor], seed: int, crops: int) -> None:
        self.data, self.crop, self.seed, self.crops = data, crop, seed, crops

    def __getitem__(self, place: Place) -> Item:
        epoch, position, index = place
        following = ((index + ahead) % len(self.data) for ahead in range(len(self.data)))
        return self.item(epoch, position, ((number, partial(self.data.__getitem__, number)) for number in following))

    def item(self, epoch: int, position: int, candidates: Iterable[Candidate]) -> Item:
        """The crops of the first usable one of ``candidates`` (decoded once) at a position of an epoch."""
        skipped = []
        for number, load in islice(candidates, _TRIES):
            try:
                image, label = load()
            except UnusableImageError as error:
                skipped.append(Skipped(error.name, error.reason))
                continue
            except DataError as error:
                return error
            crops = [self.crop(image, Crop(epoch, position, number, own)) for own in range(self.crops)]
            return torch.stack(crops), label, number, skipped
        return _too_many(self.data, skipped)


class _Streamed(IterableDataset[Item]):
    """Augmented images of a stream, in order; each loader process reads all but decodes only its own batches.

    Args:
        augmented: Applies the augmentation.
        share: The part of a batch that this process takes.
        repeats: Number of copies of each image, one after the other.
        epoch: Number of the epoch, which decides the order.
        places: Which of this process's images to return, counted from the start of the epoch.
    """

    def __init__(self, augmented: _Augmented, share: Share, repeats: int, epoch: int, places: range) -> None:
        self.augmented, self.share, self.repeats, self.epoch, self.places = augmented, share, repeats, epoch, places

    def __iter__(self) -> Iterator[Item]:
        worker = get_worker_info()
        workers, mine = (worker.num_workers, worker.id) if worker else (1, 0)
        if worker:
            forget_inherited_locks()
        share, data = self.share, self.augmented.data
        repeated = chain.from_iterable(repeat(record, self.repeats) for record in self._records())
        try:
            records = _Lookahead(islice(repeated, self.places.start, None))
            for number, place in enumerate(self.places):
                record = next(records)
                if number // share.images % workers == mine:
                    position = place * share.world + share.rank
                    candidates = ((position, partial(data.load, each)) for each in chain([record], records.following()))
                    yield self.augmented.item(self.epoch, position, candidates)
        except DataError as error:
            yield error

    def _records(self) -> Iterator[Record]:
        """This process's part of the stream, repeated forever."""
        data, share = self.augmented.data, self.share
        while True:
            empty = True
            for record in data.stream(self.augmented.seed * 1_000_003 + self.epoch, share.rank, share.world):
                empty = False
                yield record
            if empty:
                raise DataError(f"{data.name}: there are no images in the part of process {share.rank}")


class _Lookahead:
    """Records in order, of which the following ones can be seen before it is their turn."""

    def __init__(self, records: Iterator[Record]) -> None:
        self._records, self._seen = records, deque[Record]()

    def __next__(self) -> Record:
        return self._seen.popleft() if self._seen else next(self._records)

    def following(self) -> Iterator[Record]:
        """The records after the current one, which remain to be returned."""
        for ahead in count():
            if ahead == len(self._seen):
                self._seen.append(next(self._records))
            yield self._seen[ahead]


def _too_many(data: ImageData, skipped: list[Skipped]) -> DataError:
    return DataError(
        f"{data.name}: too many images cannot be used, {len(skipped)} so far; "
        f"the first, {skipped[0].name}, {skipped[0].reason}",
        hint="remove or replace them; --check-data lists files that are no images before training begins",
    )


def _collate(items: list[Item]) -> tuple[Batch, list[Skipped]] | DataError:
    fault = next((item for item in items if isinstance(item, DataError)), None)
    if fault is not None:
        return fault
    samples = [item for item in items if not isinstance(item, DataError)]
    images, labels, ids = default_collate([sample[:3] for sample in samples])
    crops = images.shape[1]
    batch = Batch(images.flatten(0, 1), labels.repeat_interleave(crops), ids.repeat_interleave(crops), crops)
    return batch, [skipped for sample in samples for skipped in sample[3]]
