"""A float teacher, which gets the student's images in its own normalization."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.errors import ModelError


class Teacher(nn.Module):
    """Computes logits or embeddings without gradients.

    Args:
        model: A float model; put into evaluation mode, in which timm's distilled models average their two heads.
        data_config: Preprocessing of the teacher.
        student_config: Preprocessing of the student, applied to the images that the teacher gets.
        name: Name of the teacher, for messages.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(
        self, model: nn.Module, data_config: Mapping[str, Any], student_config: Mapping[str, Any], name: str
    ) -> None:
        if list(data_config["input_size"]) != list(student_config["input_size"]):
            raise ModelError(
                f"teacher {name}: takes images of {data_config['input_size']}, the student of "
                f"{student_config['input_size']}",
                hint="choose a teacher of the student's image size",
            )
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        theirs, ours = (_mean_std(config) for config in (student_config, data_config))
        scale, shift = theirs[1] / ours[1], (theirs[0] - ours[0]) / ours[1]
        self._same = bool((scale == 1.0).all() and not shift.any())
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_shift", shift, persistent=False)

    def check_classes(self, classes: int, name: str) -> None:
        """Check that teacher and student have the same number of classes.

        Raises:
            ModelError: The numbers of classes differ.
        """
        own = getattr(self.model, "num_classes", classes)
        if own != classes:
            theirs, ours = (f"{count} classes" if count else "no classifier" for count in (own, classes))
            raise ModelError(
                f"teacher {name}: has {theirs}, the student {ours}", hint="--set training.distillation.teacher=NAME"
            )

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) or embeddings (B, D) for images normalized for the student, (B, 3, H, W)."""
        answers: Tensor = self.model(images if self._same else images * self._scale + self._shift)
        return answers


def _mean_std(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(config[key], dtype=torch.float32).view(3, 1, 1) for key in ("mean", "std"))
    return mean, std
