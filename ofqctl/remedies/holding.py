"""What the remedies that hold codes have in common."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.remedies.remedy import Remedy


@dataclass(frozen=True)
class StepStart:
    """A weight tensor at the start of an optimizer step.

    Attributes:
        site: The module that holds the weight.
        latent: A copy of its latent values.
        encoded: Its codes and grid steps.
        held: Which codes must not change; bool, in the shape of ``latent``.
    """

    site: WeightSite
    latent: Tensor
    encoded: Encoded
    held: Tensor


class Holding(Remedy):
    """Keeps the codes of some weights unchanged during an optimizer step.

    Held weights get no gradient, and changes by momentum and weight decay are undone after the optimizer step. The
    subclass decides which weights are held, and what holding means if the grid step is learned or computed from the
    weights. In CGA a held weight keeps its value; in iterative freezing it keeps its code, and its value changes with
    the grid step.

    For a merged query and key, the entries of the product are held. The subclass must set their gradient to 0 before it
    reaches the two projections; what the projections change nonetheless is undone by the product's correction.

    A weight is encoded once before an optimizer step, however many micro-batches that has, and once after it. Which
    weights are held depends only on the weights, so all processes of distributed training hold the same ones.

    Args:
        sites: The modules that hold the weights, on their device. Make an averaged copy of the model only after
            creating this object, because it adds the corrections of merged products to the model's tensors.
    """

    def __init__(self, sites: Iterable[WeightSite]) -> None:
        self.sites = list(sites)
        self._starts: dict[WeightSite, StepStart] = {}
        self._hooks: list[RemovableHandle] = []
        allow_holding(self.sites)

    @abstractmethod
    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:
        """Which entries of a weight are held in the current optimizer step; bool, in the shape of ``latent``."""

    @abstractmethod
    def settle(self, start: StepStart) -> None:
        """Undo what the optimizer step did to the held entries of a weight; runs without gradients."""

    def look(self, site: WeightSite, latent: Tensor) -> StepStart:
        """The weight at the start of the current optimizer step; computed once for each optimizer step.

        Args:
            site: The module that holds the weight.
            latent: The result of its ``latent()``.
        """
        if site not in self._starts:
            with torch.no_grad():
                encoded = encode(site, latent)
                self._starts[site] = StepStart(site, latent.clone(), encoded, self.held(site, latent, encoded))
        return self._starts[site]

    def penalty(self) -> None:
        """None: there is no penalty."""

    def before_step(self) -> None:
        """Decide which weights to hold and set their gradients to 0."""
        with torch.no_grad():
            for site in self.sites:
                latent = site.latent()
                held = self.look(site, latent).held
                if latent.grad is not None:
                    latent.grad.masked_fill_(held, 0.0)

    def after_step(self) -> None:
        """Restore held weights."""
        with torch.no_grad():
            for start in self._starts.values():
                self.settle(start)
        self._starts = {}

    def close(self) -> None:
        """Remove the hooks; corrections of merged products stay in the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._starts = [], {}

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: there is no state between optimizer steps."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """There is no state to restore."""


def allow_holding(sites: Iterable[WeightSite]) -> None:
    """Give merged products the correction that holding their entries needs; no weight changes."""
    with torch.no_grad():
        for site in sites:
            if is_merged(site):
                latent = site.latent()
                site.hold(torch.zeros_like(latent, dtype=torch.bool), latent)


def is_merged(site: WeightSite) -> bool:
    """Whether the latent weight is not a parameter but a product of parameters, as for merged query and key."""
    return not isinstance(site.latent(), nn.Parameter)


def learned_step(site: WeightSite) -> nn.Parameter | None:
    """The grid step of a weight, if it is a parameter."""
    step = getattr(site.weight_quantizer, "step", None)
    return step if isinstance(step, nn.Parameter) else None


def encode(site: WeightSite, latent: Tensor) -> Encoded:
    """Encode ``latent`` with the quantizer of ``site``."""
    assert site.weight_quantizer is not None
    return site.weight_quantizer.encode(latent)


def groups_of(entries: Tensor, step: Tensor) -> Tensor:
    """All entries that share a grid step with one of ``entries``; bool, in the same shape."""
    return (entries.float().sum_to_size(step.shape) > 0).expand_as(entries)
