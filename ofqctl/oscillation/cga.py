"""CGA: confidence-guided annealing of OFQ (Liu et al., ICML 2023, arXiv 2302.02210)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.remedy import Remedy
from ofqctl.oscillation.thresholds import distance_to_threshold


@dataclass(frozen=True)
class _Before:
    """One weight ahead of the optimizer step.

    Attributes:
        site: Whose weight it is.
        latent: Its values.
        encoded: Its codes and steps.
        confident: Where it is held; bool, like ``latent``.
    """

    site: WeightSite
    latent: Tensor
    encoded: Encoded
    confident: Tensor


class ConfidentFreezing(Remedy):
    """Holds the code of every weight that is far from its rounding thresholds; only the others are trained.

    A weight is *confident* if its distance to the nearest threshold exceeds the boundary range, judged at every step
    from the weights ahead of it. Confident weights get no gradient and have their old value after the step, so that
    neither momentum nor weight decay moves them. Of a merged query-key product the entries of the product are held:
    the gradient of confident entries is cut before it reaches the two projections, and what the projections move
    them by all the same is taken back by the product's correction.

    No confident code changes, by any method and at any learning rate. Values are enough for that as long as the step
    stays within the boundary range, which it does at CGA's learning rate on grids of few bits. Where a step moves on
    so far that a confident code would change with it, one of two things happens to the group that shares the step:

    * the step follows from the weights (StatsQ): the whole group is put back, and its step with it;
    * the step is learned (LSQ): it keeps what it has learned, and the confident weights of the group go along with
      it, which leaves them at the same place between their thresholds.

    Nothing is remembered from step to step but the correction, which is part of the model and of its checkpoints.
    The weights alone decide, so the processes of distributed training hold the same ones.

    Args:
        model: Quantized and calibrated, on its device. Make an averaged copy of it after this object: the corrections
            are among the model's tensors from here on.
        boundary_range: A weight this close to a threshold, in steps, is not confident; 0 to 1/2.
    """

    def __init__(self, model: nn.Module, boundary_range: float) -> None:
        self.boundary_range = boundary_range
        self._sites = [site for _, site in weight_sites(model)]
        self._before: list[_Before] = []
        self._hooks = []
        for site in self._sites:
            with torch.no_grad():
                latent = site.latent()
            if not isinstance(latent, nn.Parameter):
                site.hold(torch.zeros_like(latent, dtype=torch.bool), latent)
                assert site.weight_quantizer is not None
                # ahead of other hooks, so that a tracker sees the gradient that is left
                self._hooks.append(site.weight_quantizer.register_forward_pre_hook(self._cutter(), prepend=True))

    def penalty(self) -> None:
        """None: CGA leaves the loss alone."""

    def before_step(self) -> None:
        """Find the confident weights and set their gradients to 0."""
        with torch.no_grad():
            self._before = [self._look_at(site) for site in self._sites]
            for before in self._before:
                gradient = before.site.latent().grad
                if gradient is not None:
                    gradient.masked_fill_(before.confident, 0.0)

    def after_step(self) -> None:
        """Put the confident weights back."""
        with torch.no_grad():
            for before in self._before:
                before.site.hold(before.confident, before.latent)
                self._hold_codes(before)
        self._before = []

    def close(self) -> None:
        """Cut no more gradients; the corrections stay, the weights are what they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], []

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""

    def _look_at(self, site: WeightSite) -> _Before:
        quantizer, latent = site.weight_quantizer, site.latent()
        assert quantizer is not None
        encoded = quantizer.encode(latent)
        return _Before(site, latent.clone(), encoded, distance_to_threshold(latent, encoded) > self.boundary_range)

    def _hold_codes(self, before: _Before) -> None:
        """Mend the groups in which a confident code has changed because the step has moved."""
        now = before.site.encode_weight()
        assert now is not None
        changed = (now.codes != before.encoded.codes) & before.confident
        if not bool(changed.any()):
            return
        group = changed.float().sum_to_size(now.step.shape) > 0
        quantizer = before.site.weight_quantizer
        assert quantizer is not None
        if torch.equal(quantizer.encode(before.latent).step, before.encoded.step):
            before.site.hold(group.expand_as(changed), before.latent)
        else:
            before.site.hold(group & before.confident, before.latent * (now.step / before.encoded.step))

    def _cutter(self) -> Any:
        """A forward pre-hook of a weight quantizer: no gradient passes the confident entries of its input."""
        boundary_range = self.boundary_range

        def cut(quantizer: Any, inputs: tuple[Tensor]) -> None:
            (latent,) = inputs
            if not latent.requires_grad:
                return
            with torch.no_grad():
                confident = distance_to_threshold(latent, quantizer.encode(latent)) > boundary_range
            latent.register_hook(lambda gradient: gradient.masked_fill(confident, 0.0))  # type: ignore[no-untyped-call]

        return cut
