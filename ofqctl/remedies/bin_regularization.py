"""OBR: oscillation-aware bin regularization of VVTQ (Huang et al., TMLR 2024, arXiv 2307.00331).

A penalty that pulls every latent weight to the centre of its bin and makes the weights of a bin alike. Use it from the
start of a training at 2-4 bits whose weights oscillate, in place of dampening: it grows slowly, so that weights find
their bins first. It costs about as much as quantizing the weights once more in every optimizer step, however many
micro-batches that has, and has no cost when the model runs.

With ``w`` the latent weight, ``w_q`` its quantized value and clipping to the outermost values of the grid, the penalty
is

    lambda * sum over tensors of { mean((sg(w_q) - clip(w))^2) + sum over codes of Var(clip(w) | code) }

where ``lambda = 0.005 * (1 - cos(pi * tau))`` after a quarter of the phase, up to 0.01. The first term is that of
dampening with ``reduction: mean``. Our decisions: the variance is the unbiased one, as codes with a single weight are
left out. Where rows have grid steps of their own, weights of one code lie at different values, so the variance is that
of ``clip(w) / step``, times the mean squared step of the tensor; with one step for a tensor this is the published term.
Grid steps get no gradient. Weights of 8 bits are left out, where the authors found the penalty to do harm.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.dampening import to_centres
from ofqctl.remedies.low_bits import low_bit_sites
from ofqctl.remedies.penalty import LatentPenalty
from ofqctl.remedies.remedy import RemedySettings
from ofqctl.remedies.schedule import ScheduledSettings

_KEY = "bin_regularization"


class BinRegularization(ScheduledSettings):
    """Oscillation-aware bin regularization (Huang et al. 2024): weights of a bin come close to its centre.

    Attributes:
        start: Weight of the penalty in the loss when it starts.
        end: Weight of the penalty at the last optimizer step of the phase; it changes along a cosine.
        delay: Share of the phase's optimizer steps that pass before the penalty starts.
    """

    start: float = Field(default=0.0, ge=0.0)
    end: float = Field(default=0.01, gt=0.0)


@REMEDIES.register(_KEY, BinRegularization)
class BinPenalty(LatentPenalty):
    """Squared distances of latent weights to the centres of their bins, and their variance within each bin."""

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Check that ``model`` has weights of fewer than 8 bits."""
        super().check(model, settings)
        cls.sites(model)

    @classmethod
    def sites(cls, model: nn.Module) -> list[WeightSite]:
        """The weights of fewer than 8 bits."""
        return list(low_bit_sites(model, _KEY).values())

    def of(self, site: WeightSite, latent: Tensor) -> Tensor:
        """The penalty of one weight tensor."""
        away, encoded = to_centres(site, latent)
        return away.square().mean() + encoded.step.square().mean() * _spread(away / encoded.step, encoded)


def _spread(away: Tensor, encoded: Encoded) -> Tensor:
    """The sum over codes of the variance of ``away`` among the weights with that code; 0 for a code with one weight.

    As ``away`` is at most half a step, sums of squares lose no digits.
    """
    codes, away = (encoded.codes.to(torch.int64) - encoded.grid.range.low).flatten(), away.flatten()
    none = away.new_zeros(encoded.grid.range.count)
    number, total, squares = (none.index_add(0, codes, t) for t in (torch.ones_like(away), away, away.square()))
    return ((squares - total.square() / number.clamp(min=1.0)) / (number - 1.0).clamp(min=1.0)).sum()
