"""CGA: confidence-guided annealing of OFQ (Liu et al., ICML 2023, arXiv 2302.02210)."""

import torch
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.oscillation.holding import Before, Holding, encode, groups_of
from ofqctl.oscillation.thresholds import distance_to_threshold


class ConfidentFreezing(Holding):
    """Holds the code of every weight that is far from its rounding thresholds; only the others are trained.

    A weight is *confident* if its distance to the nearest threshold exceeds the boundary range, judged at every step
    from the weights ahead of it. Confident weights have their old value after the step.

    No confident code changes, by any method and at any learning rate. Values are enough for that as long as the step
    stays within the boundary range, which it does at CGA's learning rate on grids of few bits. Where a step moves on
    so far that a confident code would change with it, one of two things happens to the group that shares the step:

    * the step follows from the weights (StatsQ): the whole group is put back, and its step with it;
    * the step is learned (LSQ): it keeps what it has learned, and the confident weights of the group go along with
      it, which leaves them at the same place between their thresholds.

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

    def put_back(self, before: Before) -> None:
        """Values first; then mend the groups in which a confident code has changed because the step has moved."""
        site, latent, held = before.site, before.latent, before.held
        site.hold(held, latent)
        now = encode(site, site.latent())
        changed = (now.codes != before.encoded.codes) & held
        if not bool(changed.any()):
            return
        group = groups_of(changed, now.step)
        if torch.equal(encode(site, latent).step, before.encoded.step):
            site.hold(group, latent)
        else:
            site.hold(group & held, latent * (now.step / before.encoded.step))
