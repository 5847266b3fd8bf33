"""The training objective: a sum of terms, on images that may be mixed."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from timm.data.mixup import Mixup
from torch import Tensor, nn

from ofqctl.data import Batch
from ofqctl.distill import Pass, Teacher, Term, set_separate_heads
from ofqctl.errors import ModelError, RecipeError
from ofqctl.hooks import attached
from ofqctl.models import embeds
from ofqctl.recipe.methods import TERMS
from ofqctl.recipe.training import Training
from ofqctl.results.document import Gives


class Objective:
    """The loss of one forward pass.

    With distillation, a model with a distillation head trains its two heads separately: the class head on the labels,
    the distillation head on the teacher's predictions. Without, the mean of both is trained, which is also what is
    evaluated.

    Args:
        model: The converted and calibrated model.
        settings: Training part of the recipe.
        teacher: For distillation; None if there is none, or if batches have its answers.
        amp: Autocast to bfloat16.
    """

    def __init__(self, model: nn.Module, settings: Training, teacher: Teacher | None, *, amp: bool) -> None:
        self._model, self._teacher, self._amp = model, teacher, amp
        self._embeds = embeds(model)
        set_separate_heads(model, settings.distillation is not None and not self._embeds)
        self._labelled = bool(needs_labels(settings))
        self._mixup = _mixup(settings, int(getattr(model, "num_classes", 0)))
        float_model = None if teacher is None else teacher.model
        self._terms: list[Term] = [
            TERMS[name].target(model, float_model, own) for name, own in settings.objective.items()
        ]

    def __call__(self, called: nn.Module, batch: Batch, step: int, progress: float) -> tuple[Tensor, int]:
        """Run the model.

        Args:
            called: The model, or its wrapper for several processes.
            batch: The batch, on the model's device.
            step: Number of the optimizer step, for messages.
            progress: Share of all optimizer steps done so far, 0 to 1.

        Returns:
            The loss, a scalar, and the number of correct predictions, 0 for embeddings.

        Raises:
            ModelError: The loss is not finite; the message names the first layer.
        """
        target = batch.labels
        if self._mixup is not None:
            labels = batch.labels if self._labelled else torch.zeros_like(batch.labels)  # images may have none
            images, target = self._mixup(batch.images, labels)
            batch = replace(batch, images=images)
        with ExitStack() as running:
            for term in self._terms:
                running.enter_context(term.watching())
            running.enter_context(torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self._amp))
            answers = batch.targets.get("answers")
            if answers is None and self._teacher is not None:
                answers = self._teacher(batch.images)
            logits = called(batch.images)
        seen = Pass(batch, target, logits, answers, progress)
        loss = torch.stack([term.loss(seen) for term in self._terms]).sum()
        if not bool(torch.isfinite(loss)):
            raise ModelError(
                f"training: the loss is {loss.item()} at step {step}; the first output that is not finite is that of "
                f"{_first_not_finite(self._model, batch.images)}",
                hint="resume with a lower learning rate, or with --set training.optimizer.clip_grad=1",
            )
        if self._embeds:
            return loss, 0
        mean = torch.stack(seen.heads).mean(0)  # as in evaluation
        return loss, int((mean.argmax(1) == batch.labels).sum())


def check_objective(settings: Training, gives: Gives, *, recipe: str, model: str) -> None:
    """Check that every term of the objective is of what the model gives.

    Args:
        settings: Training part of the recipe.
        gives: What the model gives.
        recipe: Name of the recipe, for messages.
        model: Name of the model, for messages.

    Raises:
        RecipeError: One is not.
    """
    other = "embeddings" if gives == "classes" else "classes"
    wrong = [name for name in settings.objective if f"of_{other}" in TERMS[name].traits]
    if wrong:
        raise RecipeError(
            f"recipe '{recipe}': learns from {other} ({', '.join(wrong)}), and {model} gives {gives}",
            hint="--recipe ofq/backbone_w4a4 is one for embeddings"
            if gives == "embeddings"
            else "--features leaves the classifier out; ofq/vit_w4a4 is a recipe for classes",
        )


def needs_labels(settings: Training) -> list[str]:
    """Names of the terms of the objective that learn from labels."""
    return [name for name in settings.objective if "needs_labels" in TERMS[name].traits]


def _mixup(settings: Training, classes: int) -> Mixup | None:
    augmentation = settings.augmentation
    if augmentation.mixup == 0.0 and augmentation.cutmix == 0.0:
        return None
    return Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=augmentation.mixup,
        cutmix_alpha=augmentation.cutmix,
        label_smoothing=augmentation.label_smoothing,
        num_classes=max(1, classes),
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
