"""Accuracy, loss and speed of models on the same images."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.devices import memory_kept, suited_threads
from ofqctl.layers import values_kept
from ofqctl.models.outputs import check_output
from ofqctl.progress import Progress, silent
from ofqctl.results.accuracy import Accuracy, Paired


@dataclass
class Metrics:
    """Results of one model on labelled images; tensors are of each batch, (B,), on the CPU.

    Attributes:
        correct5: Number of images whose label was among the first five predictions.
        labels: Labels of the images, int64.
        predicted: What was predicted first, int64.
        losses: Cross-entropy of each image, float32, in nats.
        timings: For each process, seconds and images of each forward pass.
    """

    correct5: int = 0
    labels: list[Tensor] = field(default_factory=list)
    predicted: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    timings: list[list[tuple[float, int]]] = field(default_factory=lambda: [[]])

    def add(self, logits: Tensor, labels: Tensor, seconds: float) -> None:
        """Add one batch: logits (B, classes), labels (B,)."""
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self.correct5 += int((ranked == labels.unsqueeze(1)).sum())
        self.labels.append(labels.clone().cpu())  # those of a loader process hold a file open
        self.predicted.append(ranked[:, 0].clone().cpu())
        self.losses.append(F.cross_entropy(logits.float(), labels, reduction="none").cpu())
        self.timings[0].append((seconds, len(labels)))

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(map(len, self.labels))

    @property
    def images_per_second(self) -> float:
        """Speed of the forward passes, summed over all processes."""
        return speed(self.timings)

    @property
    def right(self) -> Tensor:
        """Which images were classified correctly (top-1), (images,), bool."""
        return torch.cat(self.predicted) == torch.cat(self.labels)

    @property
    def rows(self) -> dict[str, Tensor]:
        """What is known of each image, (images,) each: ``label``, ``predicted``, ``right`` (0 or 1) and ``loss``."""
        return {
            "label": torch.cat(self.labels),
            "predicted": torch.cat(self.predicted),
            "right": self.right.to(torch.int8),
            "loss": torch.cat(self.losses),
        }

    @property
    def accuracy(self) -> Accuracy:
        """The figures for a result."""
        return Accuracy(
            top1=round(100.0 * int(self.right.sum()) / self.images, 4),
            top5=round(100.0 * self.correct5 / self.images, 4),
            loss=math.fsum(torch.cat(self.losses).tolist()) / self.images,
            images=self.images,
            images_per_second=round(self.images_per_second, 2),
        )


def speed(timings: Sequence[Sequence[tuple[float, int]]]) -> float:
    """Images per second, summed over processes.

    The first pass of a process, which warms up, is not counted if there are more.

    Args:
        timings: For each process, seconds and images of each forward pass.
    """
    counted = [passes[1:] or passes for passes in timings]
    return sum(sum(n for _, n in passes) / max(sum(s for s, _ in passes), 1e-9) for passes in counted)


def merged(shares: Sequence[Metrics]) -> Metrics:
    """Merge the results of one model on images that several processes shared, in the order of ranks.

    Every figure except speed equals that of one process that takes the same batches: counts are integers, and losses
    are added exactly, whatever the order.
    """
    return Metrics(
        correct5=sum(share.correct5 for share in shares),
        labels=[labels for share in shares for labels in share.labels],
        predicted=[predicted for share in shares for predicted in share.predicted],
        losses=[losses for share in shares for losses in share.losses],
        timings=[passes for share in shares for passes in share.timings],
    )


def paired(original: Tensor, quantized: Tensor) -> Paired:
    """Compare two models on the same images, image by image.

    The standard error is that of the mean difference, which is far below that of either accuracy if the models mostly
    agree.

    Args:
        original: Which images the float model got right, (N,), bool.
        quantized: Which the quantized model got right, (N,), bool.
    """
    difference = quantized.double() - original.double()
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.zeros(())
    return Paired(
        difference=round(100.0 * float(difference.mean()), 4),
        standard_error=round(100.0 * float(error), 4),
        gained=int((quantized & ~original).sum()),
        lost=int((original & ~quantized).sum()),
    )


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits or embeddings of a batch, computed in the same way everywhere.

    Args:
        model: A float or quantized model, or one read from a file; in evaluation mode.
        images: Preprocessed images, (B, 3, H, W), on the model's device.

    Returns:
        The output, float32, (B, classes or features), all finite.

    Raises:
        ModelError: It has another shape, or some of it is not finite, so that there is nothing to rank or compare.
    """
    with torch.inference_mode():
        return check_output(model(images), images)


def evaluate(
    models: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device,
    total: int | None = None,
    progress: Progress = silent,
) -> dict[str, Metrics]:
    """Measure models side by side: every batch is decoded once and passed to each model.

    Args:
        models: Models by name, on ``device``, in evaluation mode.
        batches: Images (B, 3, H, W) and labels (B,).
        device: Device to compute on.
        total: Number of images, if known.
        progress: Called first and after every batch to report progress.
    """
    metrics = {name: Metrics() for name in models}
    done = 0
    progress("evaluate", done, total)
    with values_kept(*models.values()), memory_kept(), suited_threads(*models.values()):
        for images, labels in batches:
            moved, targets = images.to(device), labels.to(device)
            for name, model in models.items():
                start = time.perf_counter()
                logits = predict(model, moved)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                metrics[name].add(logits, targets, time.perf_counter() - start)
            done += len(labels)
            progress("evaluate", done, total)
    return metrics
