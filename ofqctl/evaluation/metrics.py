"""Accuracy, loss and speed of models on the same images."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.layers import values_kept
from ofqctl.progress import Progress, silent


@dataclass
class Metrics:
    """What one model did on labelled images.

    Attributes:
        images: Number of images.
        correct1: Images whose label came first.
        correct5: Images whose label was among the first five.
        losses: Sum of the cross entropies of each batch, in nats.
        timings: Seconds and images of each forward pass, of each process.
        hits: Of each batch, which labels came first; bool, (B,), on the CPU.
    """

    images: int = 0
    correct1: int = 0
    correct5: int = 0
    losses: list[float] = field(default_factory=list)
    timings: list[list[tuple[float, int]]] = field(default_factory=lambda: [[]])
    hits: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, labels: Tensor, seconds: float) -> None:
        """Count one batch: logits (B, classes), labels (B,)."""
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels.unsqueeze(1)
        self.images += len(labels)
        self.correct1 += int(ranked[:, 0].sum())
        self.correct5 += int(ranked.any(dim=1).sum())
        self.losses.append(float(F.cross_entropy(logits.float(), labels, reduction="sum")))
        self.hits.append(ranked[:, 0].cpu())
        self.timings[0].append((seconds, len(labels)))

    @property
    def images_per_second(self) -> float:
        """Of the forward passes alone, of all processes together.

        The first pass of a process, which warms up, does not count if there are more.
        """
        counted = [passes[1:] or passes for passes in self.timings]
        return sum(sum(n for _, n in passes) / max(sum(s for s, _ in passes), 1e-9) for passes in counted)

    def as_dict(self) -> dict[str, float | int]:
        """Figures for people and JSON: percentages, mean loss, images per second."""
        return {
            "top1": round(100.0 * self.correct1 / self.images, 4),
            "top5": round(100.0 * self.correct5 / self.images, 4),
            "loss": math.fsum(self.losses) / self.images,
            "images": self.images,
            "images_per_second": round(self.images_per_second, 2),
        }


def merged(shares: Sequence[Metrics]) -> Metrics:
    """What one model did on the images that several processes shared.

    Every figure but the speed is that of one process which takes the same batches: counts are whole numbers, and losses
    are added without rounding, in any order.
    """
    return Metrics(
        images=sum(share.images for share in shares),
        correct1=sum(share.correct1 for share in shares),
        correct5=sum(share.correct5 for share in shares),
        losses=[loss for share in shares for loss in share.losses],
        timings=[passes for share in shares for passes in share.timings],
        hits=[hit for share in shares for hit in share.hits],
    )


def paired(before: Metrics, after: Metrics) -> dict[str, float | int]:
    """How top-1 differs between two models on the same images, image by image.

    The standard error is that of the mean of the differences: far below that of either accuracy where the models mostly
    agree.

    Returns:
        ``difference`` and ``standard_error`` in points, and the numbers of images ``gained`` and ``lost``.
    """
    first, second = torch.cat(before.hits), torch.cat(after.hits)
    difference = second.double() - first.double()
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.zeros(())
    return {
        "difference": round(100.0 * float(difference.mean()), 4),
        "standard_error": round(100.0 * float(error), 4),
        "gained": int((second & ~first).sum()),
        "lost": int((first & ~second).sum()),
    }


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of a batch, the one way they are computed everywhere.

    Args:
        model: Float, quantized or read from an artifact; in evaluation mode.
        images: Preprocessed, (B, 3, H, W); on the model's device.

    Returns:
        float32, (B, classes).
    """
    with torch.inference_mode():
        logits: Tensor = model(images)
    return logits.float()


def evaluate(
    models: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device,
    total: int | None = None,
    progress: Progress = silent,
) -> dict[str, Metrics]:
    """Measure models side by side: every batch is decoded once and given to each.

    Args:
        models: By name; on ``device``, in evaluation mode.
        batches: Images (B, 3, H, W) and labels (B,).
        device: Where to compute.
        total: Number of images, if known.
        progress: Told after every batch.
    """
    metrics = {name: Metrics() for name in models}
    done = 0
    with values_kept(*models.values()):
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
