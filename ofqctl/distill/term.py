"""One term of the training objective."""

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
    """What is known after a forward pass.

    Attributes:
        batch: The batch that was passed to the model; its images may be mixed.
        target: Labels (B,), or mixed probabilities (B, classes); without meaning where the images have no labels.
        logits: What the student gives: logits (B, classes), or a pair of them, of its class head and of its
            distillation head; or embeddings (B, D).
        answers: The same of the teacher, (B, classes or D), or None.
        progress: Share of all optimizer steps of the training done so far, 0 to 1.
    """

    batch: Batch
    target: Tensor
    logits: Logits
    answers: Tensor | None
    progress: float

    @property
    def heads(self) -> tuple[Tensor, Tensor]:
        """Logits of class head and distillation head, (B, classes) each; the same twice if there is only one head."""
        return self.logits if isinstance(self.logits, tuple) else (self.logits, self.logits)


class Term(ABC):
    """A term of the objective, created once for a training as ``Term(model, teacher, settings)``.

    The model is the student; the teacher is a float model or None. A term registered with the trait ``needs_teacher``
    gets a teacher, and passes with answers. The trait ``needs_labels`` asks for labelled images, ``of_classes`` and
    ``of_embeddings`` for a model that gives these.
    """

    def __init__(self, model: nn.Module, teacher: nn.Module | None, settings: Frozen) -> None:  # noqa: B027
        """Store what is needed from the arguments."""

    def watching(self) -> AbstractContextManager[None]:
        """A context in which teacher and student run, for example with hooks on their modules."""
        return contextlib.nullcontext()

    @abstractmethod
    def loss(self, seen: Pass) -> Tensor:
        """The term as a scalar, weight included."""
