"""The input of a forward pass in training."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Augmented images of one forward pass.

    Attributes:
        images: Normalized images, (B, 3, H, W); the crops of one image are consecutive.
        labels: Labels of the images, (B,).
        ids: Index of each image in the data, (B,); for a stream, its position in the epoch.
        crops: Number of crops of each image, >= 1.
        targets: Tensors that were computed for these images before training, by name, such as a teacher's logits; (B,
            ...).
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    crops: int = 1
    targets: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        images, labels, ids = (t.to(device, non_blocking=True) for t in (self.images, self.labels, self.ids))
        targets = {name: target.to(device, non_blocking=True) for name, target in self.targets.items()}
        return replace(self, images=images, labels=labels, ids=ids, targets=targets)
