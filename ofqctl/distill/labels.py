"""Learning from labels: cross-entropy of the class head.

What every training of a classifier has, unless it learns from a teacher alone; labels may be smoothed or mixed.
"""

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.distill.term import Pass, Term
from ofqctl.recipe.methods import TERMS
from ofqctl.registry import Frozen


class Labels(Frozen):
    """Cross-entropy with the labels, or with mixed labels.

    Attributes:
        weight: Weight of this term in the objective.
        smoothing: Share of the probability that is spread over all classes; mixed labels are already smoothed when they
            are mixed.
    """

    weight: float = Field(default=1.0, ge=0.0)
    smoothing: float = Field(default=0.0, ge=0.0, le=1.0)


@TERMS.register("labels", Labels, traits=["needs_labels", "of_classes"])
class LabelTerm(Term):
    """``weight * CE(class head, target)``, in nats."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None, settings: Labels) -> None:  # noqa: ARG002
        self._settings = settings

    def loss(self, seen: Pass) -> Tensor:
        """The mean loss over the images."""
        smoothing = self._settings.smoothing if seen.target.dim() == 1 else 0.0
        return self._settings.weight * F.cross_entropy(seen.heads[0].float(), seen.target, label_smoothing=smoothing)
