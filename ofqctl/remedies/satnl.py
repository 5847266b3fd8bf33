"""SatNL: weights that saturate at a bound (Park et al., ECCV 2022, arXiv 2208.00338).

Weights are trained as the hyperbolic tangent of parameters without bounds, so no weight can outgrow the range that a
grid is to cover, and large weights move less than small ones. Use it, with SymReg and ASAM, in a float or quantized
training whose weights are to be rounded to several widths later; it costs next to nothing.

With ``c`` the bound of a layer, ``w = c * tanh(u / c)``, and the optimizer moves ``u``: its moments are of gradients
``dL/dw * (1 - (w / c)^2)``, and weight decay acts on ``u``. Pretrained weights are kept: ``u = c * atanh(w / c)`` at
the start, with ``c`` a little larger than the largest magnitude of a layer's weights.

Our decisions: the model holds ``w``, and ``u`` is computed for the optimizer step alone, which is the same function up
to float32 rounding. So whatever reads, averages, saves or quantizes weights sees weights, phases with and without it
follow each other, and all that must be kept to go on is ``c``. Gradients are clipped as those of ``w``. ``c`` is 1.25
times the largest magnitude (the paper trains from scratch, with no such factor). A merged query and key is refused: a
product of two projections cannot start as what ``atanh`` makes of the pretrained one.
"""

from collections.abc import Callable, Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.errors import RecipeError
from ofqctl.layers import weight_sites
from ofqctl.recipe.methods import REMEDIES
from ofqctl.remedies.holding import is_merged
from ofqctl.remedies.remedy import Remedy, RemedySettings

_LARGEST_SHARE = 1.0 - 2.0**-20  # of the bound, at which atanh is 7.3


class SatNL(RemedySettings):
    """Saturating nonlinearity (Park et al. 2022): weights are trained as a tanh.

    Attributes:
        bound: Bound of the weights of a layer, relative to their largest magnitude at the start of the phase.
    """

    bound: float = Field(default=1.25, gt=1.0)


@REMEDIES.register("satnl", SatNL)
class SaturatingWeights(Remedy):
    """Takes the optimizer step in the parameters under the tanh.

    Args:
        model: The quantized and calibrated model.
        settings: The bound.
        steps: Number of optimizer steps in the phase; not used.
    """

    def __init__(self, model: nn.Module, settings: SatNL, steps: int) -> None:  # noqa: ARG002
        self._weights = {name: site.latent_parameters()[0] for name, site in weight_sites(model)}
        self._bounds = {
            name: settings.bound * weight.detach().abs().amax().clamp(min=torch.finfo(weight.dtype).tiny)
            for name, weight in self._weights.items()
        }

    @classmethod
    def check(cls, model: nn.Module, settings: RemedySettings) -> None:
        """Check that no quantized weight is a product."""
        super().check(model, settings)
        for name, site in weight_sites(model):
            if is_merged(site):
                raise RecipeError(
                    f"satnl: {name} is the product of query and key projections, which cannot start as an atanh",
                    hint="--set attention.qkr=false quantizes the projections themselves",
                )

    @torch.no_grad()
    def step(self, take: Callable[[], None]) -> None:
        """Take the optimizer step in ``u``."""
        moving = [(weight, self._bounds[name]) for name, weight in self._weights.items() if weight.grad is not None]
        gradients = [weight.grad for weight, _ in moving]
        for weight, bound in moving:
            share = (weight / bound).clamp_(-_LARGEST_SHARE, _LARGEST_SHARE)
            assert weight.grad is not None
            weight.grad = weight.grad * (1.0 - share.square())
            weight.copy_(share.atanh_().mul_(bound))
        take()
        for (weight, bound), gradient in zip(moving, gradients, strict=True):
            weight.copy_((weight / bound).tanh_().mul_(bound))
            weight.grad = gradient

    def state_dict(self) -> dict[str, Tensor]:
        """For each weight ``NAME`` its bound, ``NAME``."""
        return {name: bound.clone() for name, bound in self._bounds.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state."""
        for name, bound in self._bounds.items():
            bound.copy_(state[name])
