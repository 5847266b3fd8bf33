"""CGA: confidence-guided annealing of OFQ (Liu et al., ICML 2023, arXiv 2302.02210)."""

from pydantic import Field
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.oscillation.holding import Holding
from ofqctl.oscillation.remedy import RemedySettings
from ofqctl.oscillation.thresholds import distance_to_threshold
from ofqctl.recipe.methods import REMEDIES


class CGA(RemedySettings):
    """Confidence-guided annealing (OFQ): confident codes are frozen at every step.

    Attributes:
        boundary_range: A weight this close to a rounding threshold, in steps, is not confident.
    """

    boundary_range: float = Field(default=0.005, gt=0.0, lt=0.5)


@REMEDIES.register("cga", CGA, traits=["holds_codes"])
class ConfidentFreezing(Holding):
    """Holds the code of every weight that is far from its rounding thresholds; only the others are trained.

    A weight is *confident* if its distance to the nearest threshold exceeds the boundary range, judged at every step
    from the weights ahead of it. Confident weights have their old value after the step.

    No confident code changes, by any method and at any learning rate.

    Nothing is remembered from step to step but the correction of merged products, which is part of the model and of
    its checkpoints.

    Args:
        model: As for :class:`~ofqctl.oscillation.holding.Holding`.
        settings: Which weights are confident.
        steps: Optimizer steps of the phase; not needed.
    """

    def __init__(self, model: nn.Module, settings: CGA, steps: int) -> None:  # noqa: ARG002
        super().__init__(model)
        self.boundary_range = settings.boundary_range

    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:  # noqa: ARG002
        """The confident ones."""
        return distance_to_threshold(latent, encoded) > self.boundary_range
