"""CGA: confidence-guided annealing (Liu et al., ICML 2023, arXiv 2302.02210).

The last part of OFQ. For some epochs at a low learning rate all weights are held whose codes are certain, so that only
those near a rounding threshold settle on one side. For a model that is trained already; a step costs a few percent
more.
"""

from fnmatch import fnmatchcase
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.errors import RecipeError, did_you_mean
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.oscillation.thresholds import distance_to_threshold
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.holding import Holding, StepStart, encode, groups_of, is_merged, learned_step
from ofqctl.remedies.low_bits import LOW_BELOW, has_low_bits
from ofqctl.remedies.remedy import RemedySettings


class CGA(RemedySettings):
    """Confidence-guided annealing (OFQ): confident codes are held in every optimizer step.

    Attributes:
        boundary_range: Largest distance to a rounding threshold, in grid steps, at which a weight is not confident.
        target: Shell-style patterns of the modules whose weights are held; None holds all weights of fewer than 8 bits.
    """

    boundary_range: float = Field(default=0.005, gt=0.0, lt=0.5)
    target: tuple[str, ...] | None = Field(default=None, min_length=1)


@REMEDIES.register("cga", CGA, traits=["holds_codes"])
class ConfidentFreezing(Holding):
    """Holds every weight that is far from its rounding thresholds, so that only the others are trained.

    A weight is *confident* if its distance to the nearest threshold exceeds the boundary range. This is decided from
    the weights at the start of every optimizer step, and confident weights have the same value after it.

    Restoring values holds the codes as long as the grid step does not change. If it has changed so much that a
    confident code would change, the weights that share the grid step are repaired:

    * a learned grid step (LSQ) is restored. Moving the weights along with it would not do: an optimizer like Adam moves
      the grid step by its learning rate however small its gradient is, and at 8 bits whole rows would drift;
    * if the grid step is computed from the weights (StatsQ), all weights of the group are restored, and with them the
      grid step.

    So no confident code changes, with any quantizer and at any learning rate. The only state between optimizer steps is
    the correction of merged products, which is part of the model and its checkpoints.

    Args:
        model: The quantized and calibrated model, on its device; see :class:`~ofqctl.remedies.holding.Holding`.
        settings: Says which layers are held and which weights are confident.
        steps: Number of optimizer steps in the phase; not used.

    Raises:
        RecipeError: As in :func:`targeted`.
    """

    def __init__(self, model: nn.Module, settings: CGA, steps: int) -> None:  # noqa: ARG002
        super().__init__(targeted(model, settings))
        self.boundary_range = settings.boundary_range
        for site in self.sites:
            if is_merged(site):
                assert site.weight_quantizer is not None
                # before other hooks, so that a tracker sees the remaining gradient
                self._hooks.append(site.weight_quantizer.register_forward_pre_hook(self._cutter(site), prepend=True))

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Check that ``model`` has weights to hold; see :func:`targeted`."""
        assert isinstance(settings, CGA)
        super().check(model, settings)
        targeted(model, settings)

    def held(self, site: WeightSite, latent: Tensor, encoded: Encoded) -> Tensor:  # noqa: ARG002
        """The confident weights."""
        return distance_to_threshold(latent, encoded) > self.boundary_range

    def settle(self, start: StepStart) -> None:
        """Restore the values of held weights, then repair groups in which a held code changed with the grid step."""
        site, held = start.site, start.held
        site.hold(held, start.latent)
        changed = (encode(site, site.latent()).codes != start.encoded.codes) & held
        if not bool(changed.any()):
            return
        step = learned_step(site)
        if step is not None:
            step.copy_(torch.where(changed.float().sum_to_size(step.shape) > 0, start.encoded.step, step))
        else:
            site.hold(groups_of(changed, start.encoded.step), start.latent)

    def _cutter(self, site: WeightSite) -> Any:
        """A forward pre-hook of a weight quantizer that sets the gradient of held entries to 0."""

        def cut(_quantizer: Any, inputs: tuple[Tensor]) -> None:
            (latent,) = inputs
            if latent.requires_grad:
                held = self.look(site, latent.detach()).held
                latent.register_hook(lambda gradient: gradient.masked_fill(held, 0.0))  # type: ignore[no-untyped-call]

        return cut


def targeted(model: nn.Module, settings: CGA) -> list[WeightSite]:
    """The weights that CGA holds: those of the modules that match its patterns, or all of fewer than 8 bits.

    Raises:
        RecipeError: A pattern matches no quantized weight, or no weight has fewer than 8 bits.
    """
    sites = {name.removesuffix(".weight"): site for name, site in weight_sites(model)}
    if settings.target is None:
        found = [site for site in sites.values() if has_low_bits(site)]
        if not found:
            raise RecipeError(
                f"cga.target: by default weights of fewer than {LOW_BELOW} bits are held, but the model has none",
                hint="`cga: {target: ['*']}` holds all quantized weights, `cga: null` holds none",
            )
        return found
    for pattern in settings.target:
        if not any(fnmatchcase(name, pattern) for name in sites):
            raise RecipeError(
                f"cga.target: '{pattern}' matches no module with a quantized weight",
                hint=did_you_mean(pattern, sites) or f"they are named like '{next(iter(sites), 'blocks.0.mlp.fc1')}'",
            )
    return [site for name, site in sites.items() if any(fnmatchcase(name, pattern) for pattern in settings.target)]
