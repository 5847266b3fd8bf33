"""CGA: confidence-guided annealing of OFQ (Liu et al., ICML 2023, arXiv 2302.02210)."""

from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.errors import RecipeError, did_you_mean
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.holding import Before, Holding, encode, groups_of, is_merged, learned_step
from ofqctl.oscillation.remedy import RemedySettings
from ofqctl.oscillation.thresholds import distance_to_threshold
from ofqctl.recipe.methods import REMEDIES

_LOW_BELOW = 8  # bits; of the published recipes this leaves out the first and the last layer


class CGA(RemedySettings):
    """Confidence-guided annealing (OFQ): confident codes are frozen at every step.

    Attributes:
        boundary_range: A weight this close to a rounding threshold, in steps, is not confident.
        target: Shell-style patterns of the modules whose weights are held; None takes all weights of fewer than 8 bits.
    """

    boundary_range: float = Field(default=0.005, gt=0.0, lt=0.5)
    target: tuple[str, ...] | None = Field(default=None, min_length=1)


@REMEDIES.register("cga", CGA, traits=["holds_codes"])
class ConfidentFreezing(Holding):
    """Holds every weight that is far from its rounding thresholds; only the others are trained.

    A weight is *confident* if its distance to the nearest threshold exceeds the boundary range, judged at every step
    from the weights ahead of it. A confident weight has its old value after the step.

    Values are enough to hold codes while the step of the grid stays where it is. Where it has moved so far that a
    confident code would change with it, the group that shares it is mended:

    * a learned step (LSQ) goes back to where it was. Weights must not go along with it instead: their gradient is cut,
      and an optimizer like Adam moves a step by its learning rate however small its gradient is, which at 8 bits would
      carry whole rows away;
    * where the step follows from the weights (StatsQ), all weights of the group go back, and the step with them.

    So no confident code changes, by any method and at any learning rate. Nothing is remembered from step to step but
    the correction of merged products, which is part of the model and of its checkpoints.

    Args:
        model: Quantized and calibrated, on its device; see :class:`~ofqctl.oscillation.holding.Holding`.
        settings: Which layers, and which of their weights are confident.
        steps: Optimizer steps of the phase; not needed.

    Raises:
        RecipeError: As for :func:`targeted`.
    """

    def __init__(self, model: nn.Module, settings: CGA, steps: int) -> None:  # noqa: ARG002
        super().__init__(targeted(model, settings))
        self.boundary_range = settings.boundary_range
        for site in self.sites:
            if is_merged(site):
                assert site.weight_quantizer is not None
                # ahead of other hooks, so that a tracker sees the gradient that is left
                self._hooks.append(site.weight_quantizer.register_forward_pre_hook(self._cutter(site), prepend=True))

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Whether ``model`` has the weights that it holds; see :func:`targeted`."""
        assert isinstance(settings, CGA)
        targeted(model, settings)

    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:  # noqa: ARG002
        """The confident ones."""
        return distance_to_threshold(latent, encoded) > self.boundary_range

    def settle(self, before: Before) -> None:
        """Values first; then mend the groups in which a held code has changed because the step has moved."""
        site, held = before.site, before.held
        site.hold(held, before.latent)
        changed = (encode(site, site.latent()).codes != before.encoded.codes) & held
        if not bool(changed.any()):
            return
        step = learned_step(site)
        if step is not None:
            step.copy_(torch.where(changed.float().sum_to_size(step.shape) > 0, before.encoded.step, step))
        else:
            site.hold(groups_of(changed, before.encoded.step), before.latent)

    def _cutter(self, site: WeightSite) -> Any:
        """A forward pre-hook of a weight quantizer: no gradient passes the held entries of its input."""

        def cut(_quantizer: Any, inputs: tuple[Tensor]) -> None:
            (latent,) = inputs
            if latent.requires_grad:
                held = self.look(site, latent.detach()).held
                latent.register_hook(lambda gradient: gradient.masked_fill(held, 0.0))  # type: ignore[no-untyped-call]

        return cut


def targeted(model: nn.Module, settings: CGA) -> list[WeightSite]:
    """The weights that CGA holds: those of the modules that its patterns match, or all low-bit ones.

    Raises:
        RecipeError: A pattern matches no quantized weight, or there is no low-bit one.
    """
    sites = {name.removesuffix(".weight"): site for name, site in weight_sites(model)}
    if settings.target is None:
        found = [site for site in sites.values() if _bits(site) < _LOW_BELOW]
        if not found:
            raise RecipeError(
                f"cga.target: weights of fewer than {_LOW_BELOW} bits unless it says otherwise, and there are none",
                hint="`cga: {target: ['*']}` holds all quantized weights, `cga: null` none",
            )
        return found
    for pattern in settings.target:
        if not any(fnmatchcase(name, pattern) for name in sites):
            raise RecipeError(
                f"cga.target: '{pattern}' matches no module with a quantized weight",
                hint=did_you_mean(pattern, sites) or f"they are named like '{next(iter(sites), 'blocks.0.mlp.fc1')}'",
            )
    return [site for name, site in sites.items() if any(fnmatchcase(name, pattern) for pattern in settings.target)]


def _bits(site: WeightSite) -> int:
    assert site.weight_quantizer is not None
    return site.weight_quantizer.plan.bits
