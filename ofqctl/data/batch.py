"""What a training step is given."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Augmented images of one forward pass.

    Attributes:
        images: Normalized, (B, 3, H, W). The crops of one image follow one another.
        labels: (B,).
        ids: Which image of the data each one is, (B,); of a stream, its place in the epoch.
        crops: How many crops of each image there are, >= 1.
        targets: What was made for these very images ahead of training, by name, such as a teacher's answers; (B, ...).
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    crops: int = 1
    targets: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The same on ``device``."""
        images, labels, ids = (t.to(device, non_blocking=True) for t in (self.images, self.labels, self.ids))
        targets = {name: target.to(device, non_blocking=True) for name, target in self.targets.items()}
        return replace(self, images=images, labels=labels, ids=ids, targets=targets)
