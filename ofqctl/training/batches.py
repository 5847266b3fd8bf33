"""Training batches: which images in which step, and their augmentation, as a function of the seed alone.

Order and augmentation of an image depend on (seed, epoch, position), never on workers, processes or interruptions:
the batches of step k are the same whether the run came there at once or was resumed.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ofqctl.data import ImageData, UnusableImageError
from ofqctl.errors import DataError
from ofqctl.recipe.training import Augmentation

Place = tuple[int, int, int]  # epoch, position in the epoch, index of the image


@dataclass(frozen=True)
class Share:
    """What one process takes of a batch.

    Attributes:
        batch_size: Images in one optimizer step, over all processes.
        micro_batches: Forward passes in one optimizer step.
        rank: Of this process.
        world: Number of processes.
    """

    batch_size: int
    micro_batches: int = 1
    rank: int = 0
    world: int = 1

    @property
    def images(self) -> int:
        """Images in one forward pass of this process."""
        return self.batch_size // (self.world * self.micro_batches)


class TrainingBatches:
    """Micro-batches (images (b, 3, H, W), labels (b,)) of an epoch, from any step on.

    Args:
        data: Labelled images.
        config: The model's data config.
        augmentation: What is done to the images.
        share: What this process takes.
        seed: Decides order and augmentation.
        workers: Processes that load.

    Raises:
        DataError: Fewer images than a batch, or a batch that cannot be shared evenly.
    """

    def __init__(
        self,
        data: ImageData,
        config: dict[str, Any],
        augmentation: Augmentation,
        share: Share,
        *,
        seed: int,
        workers: int = 0,
    ) -> None:
        parts = share.world * share.micro_batches
        if share.batch_size % parts:
            raise DataError(f"batch size {share.batch_size}: cannot be shared by {parts} forward passes evenly")
        repeats = max(1, augmentation.repeats)
        if len(data) < share.batch_size:
            raise DataError(
                f"{data.name}: {len(data)} images are fewer than the batch of {share.batch_size}",
                hint="--set training.batch_size=N",
            )
        self.data, self.share, self.seed, self.workers, self.repeats = data, share, seed, workers, repeats
        self.steps_per_epoch = len(data) // share.batch_size
        self._samples = _Augmented(data, _transform(config, augmentation), seed)

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches of every step of an epoch from ``first_step`` on, ``share.micro_batches`` a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.data), generator=generator)
        order = order.repeat_interleave(self.repeats)[: len(self.data)]
        used = order[: self.steps_per_epoch * self.share.batch_size]
        steps = used.view(self.steps_per_epoch, self.share.micro_batches, self.share.world, self.share.images)
        positions, rank = torch.arange(len(used)).view_as(steps), self.share.rank
        batches: list[list[Place]] = [
            [(epoch, int(p), int(i)) for p, i in zip(places, indices, strict=True)]
            for step in range(first_step, self.steps_per_epoch)
            for places, indices in zip(positions[step, :, rank], steps[step, :, rank], strict=True)
        ]
        # with a generator of its own, making the loader draws nothing from the one that dropout uses
        loader = DataLoader(self._samples, batch_sampler=batches, num_workers=self.workers, generator=generator)
        yield from loader


class _Augmented(Dataset[tuple[Tensor, int]]):
    def __init__(self, data: ImageData, transform: Any, seed: int) -> None:
        self.data, self.transform, self.seed = data, transform, seed

    def __getitem__(self, place: Place) -> tuple[Tensor, int]:
        epoch, position, index = place
        try:
            image, label = self.data[index]
        except UnusableImageError as error:
            raise DataError(f"{self.data.name}: {error.name} {error.reason}", hint="remove it and resume") from error
        with _seeded((self.seed * 1_000_003 + epoch) * 10_000_019 + position):
            return self.transform(image), label


class _seeded:  # noqa: N801
    """Within the block all generators that augmentation draws from start from one number; then they go on as before."""

    def __init__(self, seed: int) -> None:
        self.seed = seed % (1 << 63)

    def __enter__(self) -> None:
        self._states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        random.seed(self.seed)
        np.random.seed(self.seed % (1 << 32))
        torch.manual_seed(self.seed)

    def __exit__(self, *_: object) -> None:
        python, numpy, pytorch = self._states
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(pytorch)


def _transform(config: dict[str, Any], augmentation: Augmentation) -> Any:
    return create_transform(
        tuple(config["input_size"]),
        is_training=True,
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        color_jitter=augmentation.color_jitter or 0.0,
        auto_augment=augmentation.auto_augment,
        re_prob=augmentation.random_erase,
        re_mode="pixel",
    )
