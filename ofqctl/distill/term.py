"""One summand of the objective of training."""

import contextlib
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import Tensor, nn

from ofqctl.data import Batch
from ofqctl.registry import Frozen

Logits = Tensor | tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pass:
    """What is known behind a forward pass.

    Attributes:
        batch: What it was given; its images may be mixed.
        target: Labels (B,), or mixed probabilities (B, classes).
        logits: Of the student, (B, classes), or of its class head and its distillation head.
        answers: Logits of the teacher, (B, classes), or None.
        progress: Share of all optimizer steps of the training that are done, 0 to 1.
    """

    batch: Batch
    target: Tensor
    logits: Logits
    answers: Tensor | None
    progress: float

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """The class head and the distillation head, (B, classes) each; a model with one head has it twice."""
        return self.logits if isinstance(self.logits, tuple) else (self.logits, self.logits)


class Term(ABC):
    """Made once for a training as ``Term(model, teacher, settings)``: student, float teacher or None, its settings.

    A term that is registered with the trait ``needs_teacher`` gets a teacher, and a pass with answers.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module | None, settings: Frozen) -> None:  # noqa: B027
        """Take note of what is needed of the three."""

    def watching(self) -> AbstractContextManager[None]:
        """The context in which teacher and student run, such as one with hooks on their modules."""
        return contextlib.nullcontext()

    @abstractmethod
    def loss(self, seen: Pass) -> Tensor:
        """The summand, a scalar, its weight included."""
