"""Holding codes still: what the remedies that freeze weights have in common."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.remedy import Remedy


@dataclass(frozen=True)
class Before:
    """One weight ahead of the optimizer step.

    Attributes:
        site: Whose weight it is.
        latent: Its values.
        encoded: Its codes and steps.
        held: Where its codes must not change; bool, like ``latent``.
    """

    site: WeightSite
    latent: Tensor
    encoded: Encoded
    held: Tensor


class Holding(Remedy):
    """Holds the codes of some weights through an optimizer step.

    Held weights get no gradient, and a value with their old code after the step, so that neither momentum nor weight
    decay moves them. Of a merged query-key product the entries of the product are held: the gradient of held entries
    is cut before it reaches the two projections, and what the projections move them by all the same is taken back by
    the product's correction.

    Values are enough to hold codes while the step of the grid stays where it is. Where it has moved so far that a held
    code would change with it, the group that shares it is mended:

    * a learned step (LSQ) goes back to where it was. Weights must not go along with it instead: its gradient knows
      nothing of held codes, and an optimizer like Adam moves it by its learning rate however small the gradient is,
      which at 8 bits would carry whole rows away;
    * where the step follows from the weights (StatsQ), all weights of the group go back, and the step with them.

    The weights alone decide, so the processes of distributed training hold the same ones.

    Args:
        model: Quantized and calibrated, on its device. Make an averaged copy of it after this object: the corrections
            are among the model's tensors from here on.
    """

    def __init__(self, model: nn.Module) -> None:
        self.sites = [site for _, site in weight_sites(model)]
        self._before: list[Before] = []
        self._hooks = []
        for site in self.sites:
            with torch.no_grad():
                latent = site.latent()
            if not isinstance(latent, nn.Parameter):
                site.hold(torch.zeros_like(latent, dtype=torch.bool), latent)
                assert site.weight_quantizer is not None
                # ahead of other hooks, so that a tracker sees the gradient that is left
                self._hooks.append(site.weight_quantizer.register_forward_pre_hook(self._cutter(site), prepend=True))

    @abstractmethod
    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:
        """Which entries of a weight are held in the step under way; bool, like ``latent``."""

    def penalty(self) -> None:
        """None: the loss is left alone."""

    def before_step(self) -> None:
        """Find the weights to hold and set their gradients to 0."""
        with torch.no_grad():
            self._before = [self._look_at(site) for site in self.sites]
            for before in self._before:
                gradient = before.site.latent().grad
                if gradient is not None:
                    gradient.masked_fill_(before.held, 0.0)

    def after_step(self) -> None:
        """Put the held weights back."""
        with torch.no_grad():
            for before in self._before:
                _put_back(before)
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

    def _look_at(self, site: WeightSite) -> Before:
        latent = site.latent()
        encoded = encode(site, latent)
        return Before(site, latent.clone(), encoded, self.held(site, latent, encoded))

    def _cutter(self, site: WeightSite) -> Any:
        """A forward pre-hook of a weight quantizer: no gradient passes the held entries of its input."""

        def cut(_quantizer: Any, inputs: tuple[Tensor]) -> None:
            (latent,) = inputs
            if not latent.requires_grad:
                return
            with torch.no_grad():
                held = self.held(site, latent, encode(site, latent))
            latent.register_hook(lambda gradient: gradient.masked_fill(held, 0.0))  # type: ignore[no-untyped-call]

        return cut


def _put_back(before: Before) -> None:
    """Values first; then mend the groups in which a held code has changed because the step has moved."""
    site, held = before.site, before.held
    site.hold(held, before.latent)
    changed = (encode(site, site.latent()).codes != before.encoded.codes) & held
    if not bool(changed.any()):
        return
    assert site.weight_quantizer is not None
    step = getattr(site.weight_quantizer, "step", None)
    if isinstance(step, nn.Parameter):
        step.copy_(torch.where(changed.float().sum_to_size(step.shape) > 0, before.encoded.step, step))
    else:
        site.hold(groups_of(changed, before.encoded.step), before.latent)


def encode(site: WeightSite, latent: Tensor) -> Encoded:
    """The codes that ``latent`` would have in ``site``."""
    assert site.weight_quantizer is not None
    return site.weight_quantizer.encode(latent)


def groups_of(entries: Tensor, step: Tensor) -> Tensor:
    """All entries that share a step with one of ``entries``; bool, like them."""
    return (entries.float().sum_to_size(step.shape) > 0).expand_as(entries)
