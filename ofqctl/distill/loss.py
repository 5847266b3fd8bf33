"""Hard and soft cross entropy, on one head or on two."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.recipe.training import Distillation

Logits = Tensor | tuple[Tensor, Tensor]


def set_separate_heads(model: nn.Module, separate: bool) -> None:
    """Have a model with a distillation head give both heads apart in training, or their mean; others stay as they are.

    In evaluation such a model of timm gives the mean whatever is set here, and no file keeps the setting.
    """
    switch: Any = getattr(model, "set_distilled_training", None)
    if switch is not None:
        switch(separate)


def heads_of(logits: Logits) -> tuple[Tensor, Tensor]:
    """The class head and the distillation head, (B, classes) each; a model with one head has it twice."""
    return logits if isinstance(logits, tuple) else (logits, logits)


def hard_loss(logits: Tensor, target: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy with labels (B,) or with mixed probabilities (B, classes), in nats."""
    return F.cross_entropy(logits.float(), target, label_smoothing=label_smoothing if target.dim() == 1 else 0.0)


def distillation_loss(
    logits: Logits, target: Tensor, teacher: Tensor, settings: Distillation, label_smoothing: float = 0.0
) -> Tensor:
    """``hard * CE(class head, target) + soft * T^2 * CE(distillation head, teacher's probabilities)``.

    With temperature 1 and weights 1 this is OFQ's loss. The factor T^2 keeps the size of the soft gradients
    (Hinton et al. 2015).

    Args:
        logits: Of the student, (B, classes), or of its two heads.
        target: Labels (B,) or mixed probabilities (B, classes).
        teacher: Logits of the teacher, (B, classes).
        settings: Weights and temperature.
        label_smoothing: Of the hard labels.
    """
    class_head, distillation_head = heads_of(logits)
    temperature = settings.temperature
    soft_target = (teacher.float() / temperature).softmax(dim=1)
    soft = F.cross_entropy(distillation_head.float() / temperature, soft_target) * temperature**2
    return settings.hard * hard_loss(class_head, target, label_smoothing) + settings.soft * soft
