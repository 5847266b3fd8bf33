"""Batches of opened data, preprocessed as the model's data config says.

Which images are read, in which order and in which batches depends only on the data, ``limit``, ``shuffle``, the seed
and the epoch, never on the number of worker processes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ofqctl.data.channels import with_channels
from ofqctl.data.images import ImageData
from ofqctl.data.samples import Item, LoadedBatch, Samples, Skipped, StreamedSamples, Transform, collate
from ofqctl.data.workers import load_batches
from ofqctl.errors import DataError


class ImageLoader:
    """Batches (images float32 (B, C, H, W), labels int64 (B,)) of opened data.

    An image that cannot be decoded is left out of its batch and listed in `skipped`.

    Args:
        data: The images.
        transform: PIL image to float32 tensor (C, H, W).
        batch_size: Number of images in a batch, >= 1.
        workers: Number of loader processes; 0 loads in this process.
        limit: Number of images to read, drawn with ``seed`` from the whole set (from a shuffle buffer, if streamed);
            None reads all.
        shuffle: Whether each epoch has a new order; limited streams keep their order.
        seed: Seed of the selection and the orders.
        pin_memory: Copy batches to page-locked memory.
        rank: Rank of this process among those that share the images.
        world: Number of these processes, which take the batches in turn; the batches are the same for any number.
        image_bytes: Size of one preprocessed image.

    Attributes:
        transform_text: Description of the preprocessing.
        turned: Number of images that were turned as their EXIF orientation says, in the last iteration so far.
    """

    def __init__(
        self,
        data: ImageData,
        transform: Transform,
        *,
        batch_size: int,
        workers: int = 0,
        limit: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        pin_memory: bool = False,
        rank: int = 0,
        world: int = 1,
        image_bytes: int = 0,
    ) -> None:
        _check_counts({"batch size": (batch_size, 1), "workers": (workers, 0), "limit": (limit, 1)})
        self.data = data
        self.transform = transform
        steps = ", ".join(str(step) for step in getattr(transform, "transforms", [transform]))
        self.transform_text = " ".join(steps.split())
        self.batch_size = batch_size
        self.limit = limit
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = self.turned = 0
        self.workers = workers
        self.pin_memory = pin_memory
        self.rank, self.world = rank, world
        self.image_bytes = image_bytes
        self._skipped: dict[str, str] = {}

    @property
    def skipped(self) -> list[Skipped]:
        """The images skipped so far, each listed once."""
        return [Skipped(name, reason) for name, reason in self._skipped.items()]

    @property
    def image_count(self) -> int | None:
        """Number of images an epoch visits in this process, decodable or not; None if unknown."""
        if self.data.image_count is None:
            return None
        return len(self._share(range(min(count for count in (self.data.image_count, self.limit) if count is not None))))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, whose order the next iteration uses."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.image_count is None:
            raise TypeError(f"{self.data.name} is streamed: its number of batches is unknown")
        return math.ceil(self.image_count / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _, batch in self.numbered():
            yield batch.images, batch.labels

    def numbered(self) -> Iterator[tuple[int, LoadedBatch]]:
        """The batches with the names of their images, and the number of each among those of all processes."""
        decoded = self.turned = 0
        for number, batch in enumerate(self._batches()):
            if batch.fault is not None:
                raise batch.fault
            self._skipped.update(batch.skipped)
            self.turned += batch.turned
            decoded += len(batch.labels)
            if len(batch.labels):
                yield number * self.world + self.rank, batch
        if not decoded and self.world == 1:
            raise none_usable(self.data, self.skipped)

    def _batches(self) -> Iterable[LoadedBatch]:
        # It seeds augmentation in worker processes; without workers, the global generators are used.
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        samples: Dataset[Item]
        order: Sequence[int] | None = None
        if self.data.streaming:
            shape = (self.batch_size, self.limit, self._stream_seed(), self.rank, self.world)
            samples = StreamedSamples(self.data, self.transform, *shape)
        else:
            samples, order = Samples(self.data, self.transform), self._order()
        return load_batches(
            samples,
            workers=self.workers,
            batch_bytes=self.batch_size * self.image_bytes,
            batch_size=self.batch_size,
            sampler=order,
            pin_memory=self.pin_memory,
            collate_fn=collate,
            generator=generator,
        )

    def _order(self) -> list[int]:
        """Indices of this epoch's images, in the order in which this process reads them."""
        count = len(self.data)
        chosen = list(range(count))
        if self.limit is not None and self.limit < count:
            chosen = _permuted(chosen, self.seed)[: self.limit]
        return self._share(_permuted(chosen, self.seed + self.epoch) if self.shuffle else chosen)

    def _share(self, order: Sequence[int]) -> list[int]:
        """The part of ``order`` that this process reads: every ``world``-th batch."""
        size = self.batch_size
        starts = range(self.rank * size, len(order), self.world * size)
        return [index for start in starts for index in order[start : start + size]]

    def _stream_seed(self) -> int | None:
        if self.limit is not None:
            return self.seed
        return self.seed + self.epoch if self.shuffle else None


def image_loader(
    data: ImageData,
    config: Mapping[str, Any],
    *,
    batch_size: int,
    workers: int = 0,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    pin_memory: bool = False,
    augmentation: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
) -> ImageLoader:
    """Batches of ``data``, preprocessed as the model's data config says.

    Args:
        data: The images.
        config: timm's data config: input_size, interpolation, mean, std, crop_pct and crop_mode.
        batch_size: Number of images in a batch, >= 1.
        workers: Number of loader processes; 0 loads in this process.
        limit: Number of images to read, drawn with ``seed`` from the whole set; None reads all.
        shuffle: Whether each epoch has a new order.
        seed: Seed of the selection and the orders.
        pin_memory: Copy batches to page-locked memory.
        augmentation: Options of `timm.data.create_transform` for training, such as ``{"auto_augment": "rand-m9"}``;
            None preprocesses for evaluation.
        rank: Rank of this process among those that share the images.
        world: Number of these processes, which take the batches in turn.

    Raises:
        DataError: A number is out of range, or the model takes neither 1 nor 3 channels.
    """
    return ImageLoader(
        data,
        make_transform(config, augmentation),
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        shuffle=shuffle,
        seed=seed,
        pin_memory=pin_memory,
        rank=rank,
        world=world,
        image_bytes=4 * math.prod(config["input_size"]),
    )


def none_usable(data: ImageData, skipped: Sequence[Skipped]) -> DataError:
    """An error that says that all images were skipped, and why the first of ``skipped`` was."""
    first = f"; the first, {skipped[0].name}, {skipped[0].reason}" if skipped else ""
    return DataError(f"{data.name}: none of its {len(skipped)} images can be used{first}")


def make_transform(config: Mapping[str, Any], augmentation: Mapping[str, Any] | None = None) -> Transform:
    """The preprocessing of one image, as timm makes it; arguments as for :func:`image_loader`."""
    from timm.data.transforms_factory import create_transform

    input_size = tuple(config["input_size"])
    transform: Transform = create_transform(
        input_size,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        crop_pct=config.get("crop_pct"),
        crop_mode=config.get("crop_mode"),
        is_training=augmentation is not None,
        **(augmentation or {}),
    )
    return with_channels(transform, input_size[0])


def _permuted(indices: list[int], seed: int) -> list[int]:
    order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(seed)).tolist()
    return [indices[position] for position in order]


def _check_counts(counts: Mapping[str, tuple[int | None, int]]) -> None:
    for name, (value, lowest) in counts.items():
        if value is not None and value < lowest:
            raise DataError(f"{name}: {value} is too small; at least {lowest} is allowed")
