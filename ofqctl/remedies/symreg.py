"""SymReg: symmetric weights, whose rounding errors cancel (Park et al., ECCV 2022, arXiv 2208.00338).

Errors of rounding that are symmetric around 0 cancel in a sum over many weights, so outputs do not drift when a layer
is quantized, at any number of bits. A penalty pairs the weights of a layer, the smallest with the largest and so on,
and asks each pair to cancel. Use it, with SatNL and ASAM, in a float or quantized training whose weights are to be
rounded to several widths later. ``pairing: full`` sorts every layer in each optimizer step; ``2:2`` sorts groups of
four.

With the weights of a layer in order, ``w_(1) <= ... <= w_(N)``, the penalty is

    lambda * sum over layers, and over i = 1 ... N / 2, of |w_(i) + w_(N + 1 - i)|

or of its square. Depthwise convolutions are left out, as each of their outputs sums over a few weights only, which need
their freedom more.

Our decisions, where the paper was not to be had: the absolute value by default, whose pull does not fade as pairs come
close; a strength of 1e-4 from the first optimizer step on, a tenth or less of the loss's own gradients (their mean
magnitude is 2e-3 to 8e-3 in the layers of a pretrained ViT-Tiny, on 32 images). ``2:2`` takes four weights next to each
other in an output's row and asks the smallest to cancel the largest, and the two between to cancel each other; up to
three weights at the end of a row are left out. Whole layers of that ViT-Tiny are symmetric from the start (pairs miss
by 1 % of the mean magnitude), groups of four are not (as much as the mean magnitude), so ``2:2`` changes more. For a
merged query and key, the product is symmetric.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from ofqctl.errors import RecipeError
from ofqctl.layers import QuantConv2d, WeightSite
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.penalty import LatentPenalty
from ofqctl.remedies.remedy import RemedySettings
from ofqctl.remedies.schedule import ScheduledSettings

_GROUP = 4


class SymReg(ScheduledSettings):
    """Symmetry regularization (Park et al. 2022): pairs of weights cancel.

    Attributes:
        start: Weight of the penalty in the loss when it starts.
        end: Weight of the penalty at the last optimizer step of the phase; it changes along a cosine.
        delay: Share of the phase's optimizer steps that pass before the penalty starts.
        pairing: Which weights cancel: pairs of the whole layer (``full``), or of groups of four (``2:2``).
        distance: What is summed of what a pair does not cancel, the ``absolute`` value or the ``square``.
    """

    start: float = Field(default=1e-4, ge=0.0)
    end: float = Field(default=1e-4, gt=0.0)
    delay: float = Field(default=0.0, ge=0.0, lt=1.0)
    pairing: Literal["full", "2:2"] = "full"
    distance: Literal["absolute", "square"] = "absolute"


@REMEDIES.register("symreg", SymReg)
class SymmetryPenalty(LatentPenalty):
    """What the pairs of latent weights do not cancel.

    Args:
        model: The quantized and calibrated model.
        settings: Pairs, and schedule of the penalty.
        steps: Number of optimizer steps in the phase.
    """

    def __init__(self, model: nn.Module, settings: SymReg, steps: int) -> None:
        super().__init__(model, settings, steps)
        self._full = settings.pairing == "full"
        self._absolute = settings.distance == "absolute"

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Check that ``model`` has weights other than those of depthwise convolutions."""
        super().check(model, settings)
        if not cls.sites(model):
            raise RecipeError("symreg: leaves depthwise convolutions out, and this model quantizes no other weights")

    @classmethod
    def sites(cls, model: nn.Module) -> list[WeightSite]:
        """All quantized weights but those of depthwise convolutions."""
        return [site for site in super().sites(model) if not _is_depthwise(site)]

    def of(self, site: WeightSite, latent: Tensor) -> Tensor:  # noqa: ARG002
        """The penalty of one weight tensor."""
        sums = pair_sums(latent.flatten() if self._full else _fours(latent))
        return (sums.abs() if self._absolute else sums.square()).sum()


def pair_sums(weights: Tensor) -> Tensor:
    """Sums of the smallest and the largest, the second smallest and the second largest, and so on.

    Args:
        weights: (..., weights); of an odd number the one in the middle is left out.

    Returns:
        (..., pairs).
    """
    ordered = weights.sort(dim=-1).values
    pairs = ordered.shape[-1] // 2
    return ordered[..., :pairs] + ordered.flip(-1)[..., :pairs]


def _fours(latent: Tensor) -> Tensor:
    """Neighbours in the rows of the outputs, (outputs, groups, 4)."""
    rows = latent.flatten(1)
    return rows[:, : rows.shape[1] // _GROUP * _GROUP].reshape(len(rows), -1, _GROUP)


def _is_depthwise(site: WeightSite) -> bool:
    return isinstance(site, QuantConv2d) and site.groups == site.in_channels > 1
