"""Holding codes still: what the remedies that hold weights have in common."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.oscillation.remedy import Remedy


@dataclass(frozen=True)
class Before:
    """One weight ahead of the optimizer step.

    Attributes:
        site: Whose weight it is.
        latent: A copy of its latent values.
        encoded: Its codes and steps.
        held: Where its codes must not change; bool, like ``latent``.
    """

    site: WeightSite
    latent: Tensor
    encoded: Encoded
    held: Tensor


class Holding(Remedy):
    """Holds the codes of some weights through an optimizer step.

    Held weights get no gradient, and what momentum and weight decay do to them all the same is undone after the step.
    Two things are left to the subclass: which weights are held, and what holding means for a weight whose grid step is
    learned or follows from the weights. In CGA a held weight keeps its value; in iterative freezing it keeps its code,
    and its value moves with the step.

    Of a merged query-key product the entries of the product are held: the gradient of held entries must be cut before
    it reaches the two projections, which is up to the subclass, and what the projections move them by all the same is
    taken back by the product's correction.

    A weight is encoded once ahead of an optimizer step, however many micro-batches it takes, and once behind it. The
    weights alone decide, so the processes of distributed training hold the same ones.

    Args:
        sites: The weights, on their device. Make an averaged copy of the model after this object: the corrections of
            merged products are among the model's tensors from here on.
    """

    def __init__(self, sites: Iterable[WeightSite]) -> None:
        self.sites = list(sites)
        self._before: dict[WeightSite, Before] = {}
        self._hooks: list[RemovableHandle] = []
        with torch.no_grad():
            for site in self.sites:
                if is_merged(site):
                    latent = site.latent()
                    site.hold(torch.zeros_like(latent, dtype=torch.bool), latent)

    @abstractmethod
    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:
        """Which entries of a weight are held in the step under way; bool, like ``latent``."""

    @abstractmethod
    def settle(self, before: Before) -> None:
        """Undo what the optimizer step has done to the held entries of a weight; without gradients."""

    def look(self, site: WeightSite, latent: Tensor) -> Before:
        """A weight as it is ahead of the step under way; found out once a step.

        Args:
            site: The weight.
            latent: What its ``latent()`` gives.
        """
        if site not in self._before:
            with torch.no_grad():
                encoded = encode(site, latent)
                self._before[site] = Before(site, latent.clone(), encoded, self.held(site, latent, encoded))
        return self._before[site]

    def penalty(self) -> None:
        """None: the loss is left alone."""

    def before_step(self) -> None:
        """Find the weights to hold and set their gradients to 0."""
        with torch.no_grad():
            for site in self.sites:
                latent = site.latent()
                held = self.look(site, latent).held
                if latent.grad is not None:
                    latent.grad.masked_fill_(held, 0.0)

    def after_step(self) -> None:
        """Give held weights back what they must keep."""
        with torch.no_grad():
            for before in self._before.values():
                self.settle(before)
        self._before = {}

    def close(self) -> None:
        """Cut no more gradients; the corrections stay, the weights are what they are."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._before = [], {}

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""


def is_merged(site: WeightSite) -> bool:
    """Whether the latent weight is a product of parameters, as that of query and key, and not a parameter itself."""
    return not isinstance(site.latent(), nn.Parameter)


def learned_step(site: WeightSite) -> nn.Parameter | None:
    """The step of a weight's grid, if it is a parameter."""
    step = getattr(site.weight_quantizer, "step", None)
    return step if isinstance(step, nn.Parameter) else None


def encode(site: WeightSite, latent: Tensor) -> Encoded:
    """The codes that ``latent`` would have in ``site``."""
    assert site.weight_quantizer is not None
    return site.weight_quantizer.encode(latent)


def groups_of(entries: Tensor, step: Tensor) -> Tensor:
    """All entries that share a step with one of ``entries``; bool, like them."""
    return (entries.float().sum_to_size(step.shape) > 0).expand_as(entries)
