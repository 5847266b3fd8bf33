"""Learning from the predictions of a teacher (Hinton et al., 2015, arXiv 1503.02531).

The student learns the teacher's probabilities, with its distillation head if it has one. The teacher is the float model
that training starts from, or any other of the same classes; its forward pass is what it costs.
"""

from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.distill.term import Pass, Term
from ofqctl.recipe.methods import TERMS
from ofqctl.registry import Frozen


class Answers(Frozen):
    """Cross-entropy with the teacher's probabilities.

    Attributes:
        weight: Weight of this term in the objective.
        temperature: Temperature of the teacher's and the student's softmax.
    """

    weight: float = Field(default=1.0, ge=0.0)
    temperature: float = Field(default=1.0, gt=0.0)


@TERMS.register("answers", Answers, traits=["needs_teacher", "of_classes"])
class AnswerTerm(Term):
    """``weight * T^2 * CE(distillation head / T, softmax(teacher / T))``; T^2 keeps the scale of the gradients."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None, settings: Answers) -> None:  # noqa: ARG002
        self._settings = settings

    def loss(self, seen: Pass) -> Tensor:
        """The mean loss over the images."""
        assert seen.answers is not None
        temperature = self._settings.temperature
        wanted = (seen.answers.float() / temperature).softmax(dim=1)
        given = seen.heads[1].float() / temperature
        return self._settings.weight * (F.cross_entropy(given, wanted) * temperature**2)


def set_separate_heads(model: nn.Module, separate: bool) -> None:
    """Make a model with a distillation head return both heads in training, or their mean; other models are unchanged.

    In evaluation such a timm model always returns the mean; the setting is not stored in any file.
    """
    switch: Any = getattr(model, "set_distilled_training", None)
    if switch is not None:
        switch(separate)
