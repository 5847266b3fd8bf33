"""What training minimizes: labels, and a teacher's answers and features, on images that may be mixed."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn

from ofqctl.distill import FeatureDistillation, Teacher, distillation_loss
from ofqctl.distill.loss import Logits, hard_loss, heads_of, set_separate_heads
from ofqctl.errors import ModelError
from ofqctl.hooks import attached
from ofqctl.recipe.training import Training


class Objective:
    """The loss of one micro-batch.

    With a teacher, a model that has a distillation head trains each of its two heads apart: the class head on the
    labels, the other on the teacher's answers. Without one there is nothing that only one of them would learn, so it
    trains what is evaluated, the mean of both.

    Args:
        model: Converted and calibrated.
        settings: Of the recipe.
        teacher: For distillation, or None.
        amp: Autocast to bfloat16.
    """

    def __init__(self, model: nn.Module, settings: Training, teacher: Teacher | None, *, amp: bool) -> None:
        self._model, self._settings, self._teacher, self._amp = model, settings, teacher, amp
        set_separate_heads(model, teacher is not None)
        self._mixup = _mixup(settings, int(getattr(model, "num_classes", 0)))
        wanted = None if settings.distillation is None else settings.distillation.features
        self._features = None
        if teacher is not None and wanted is not None:
            self._features = FeatureDistillation(model, teacher.model, wanted)

    def __call__(self, called: nn.Module, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, int]:
        """Run the model.

        Args:
            called: The model, or what many processes wrap it in.
            images: Normalized, (B, 3, H, W), on the model's device.
            labels: (B,).
            step: Number of the optimizer step, told where it fails.

        Returns:
            The loss, a scalar, and how many of the labels came first.

        Raises:
            ModelError: The loss is not finite; names the first layer.
        """
        target = labels
        if self._mixup is not None:
            images, target = self._mixup(images, labels)
        recording = contextlib.nullcontext() if self._features is None else self._features.recording()
        with recording, torch.autocast(images.device.type, torch.bfloat16, enabled=self._amp):
            answers = None if self._teacher is None else self._teacher(images)
            logits = called(images)
        loss = self._loss(logits, target, answers)
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"training: the loss is {loss.item()} at step {step}; the first output that is not finite is that of "
                f"{_first_not_finite(self._model, images)}",
                hint="the last checkpoint is good; a lower learning rate, --set training.optimizer.clip_grad=1",
            )
        mean = torch.stack(heads_of(logits)).mean(0)  # what is evaluated
        return loss, int((mean.argmax(1) == labels).sum())

    def _loss(self, logits: Logits, target: Tensor, answers: Tensor | None) -> Tensor:
        smoothing, distillation = self._settings.augmentation.label_smoothing, self._settings.distillation
        if answers is not None and distillation is not None:
            loss = distillation_loss(logits, target, answers, distillation, smoothing)
            return loss if self._features is None else loss + self._features.loss()
        return hard_loss(heads_of(logits)[0], target, smoothing)


def _mixup(settings: Training, classes: int) -> Mixup | None:
    augmentation = settings.augmentation
    if augmentation.mixup == 0.0 and augmentation.cutmix == 0.0:
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=augmentation.mixup,
        cutmix_alpha=augmentation.cutmix,
        label_smoothing=augmentation.label_smoothing,
        num_classes=classes,
    )


def _first_not_finite(model: nn.Module, images: Tensor) -> str:
    """Name of the first module, in order of computation, whose output is not finite."""
    found: list[str] = []

    def check(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(torch.isfinite(output).all()):
                found.append(name)

        return hook

    hooks = (module.register_forward_hook(check(name)) for name, module in model.named_modules() if name)
    with attached(hooks), torch.no_grad():
        model(images)
    return found[0] if found else "the loss itself"
