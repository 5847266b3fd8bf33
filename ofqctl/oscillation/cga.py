"""CGA: confidence-guided annealing of OFQ (Liu et al., ICML 2023, arXiv 2302.02210)."""

from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.oscillation.holding import Holding
from ofqctl.oscillation.thresholds import distance_to_threshold


class ConfidentFreezing(Holding):
    """Holds the code of every weight that is far from its rounding thresholds; only the others are trained.

    A weight is *confident* if its distance to the nearest threshold exceeds the boundary range, judged at every step
    from the weights ahead of it. Confident weights have their old value after the step.

    No confident code changes, by any method and at any learning rate.

    Nothing is remembered from step to step but the correction of merged products, which is part of the model and of
    its checkpoints.

    Args:
        model: As for :class:`~ofqctl.oscillation.holding.Holding`.
        boundary_range: A weight this close to a threshold, in steps, is not confident; 0 to 1/2.
    """

    def __init__(self, model: nn.Module, boundary_range: float) -> None:
        super().__init__(model)
        self.boundary_range = boundary_range

    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:  # noqa: ARG002
        """The confident ones."""
        return distance_to_threshold(latent, encoded) > self.boundary_range
