"""Learning the embeddings of a teacher.

For models without a classifier: the pooled embedding of the student learns to be that of the float model. No labels are
needed.
"""

from pydantic import Field
from torch import Tensor, nn

from ofqctl.distill.term import Pass, Term
from ofqctl.errors import ModelError
from ofqctl.recipe.methods import TERMS
from ofqctl.registry import Frozen


class Embedding(Frozen):
    """Squared error of the pooled embedding.

    Attributes:
        weight: Weight of this term in the objective.
    """

    weight: float = Field(default=1.0, ge=0.0)


@TERMS.register("embedding", Embedding, traits=["needs_teacher", "of_embeddings"])
class EmbeddingTerm(Term):
    """``weight * |student - teacher|^2 / |teacher|^2``, the mean over the images."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None, settings: Embedding) -> None:  # noqa: ARG002
        self._settings = settings

    def loss(self, seen: Pass) -> Tensor:
        """The mean loss over the images.

        Raises:
            ModelError: The teacher's embeddings have another length.
        """
        assert seen.answers is not None
        given, wanted = seen.heads[0].float(), seen.answers.float()
        if given.shape != wanted.shape:
            raise ModelError(
                f"training.terms.embedding: the teacher gives {wanted.shape[1]} features, the student {given.shape[1]}",
                hint="--set training.distillation.teacher=NAME",
            )
        length = wanted.square().sum(dim=1).clamp(min=1e-12)
        return self._settings.weight * ((given - wanted).square().sum(dim=1) / length).mean()
