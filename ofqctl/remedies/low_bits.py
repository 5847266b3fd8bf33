"""Which weights have so few bits that remedies for them are worth it."""

from torch import nn

from ofqctl.errors import RecipeError
from ofqctl.layers import WeightSite, weight_sites

LOW_BELOW = 8  # bits; excludes the 8-bit first and last layers of the published recipes


def low_bit_sites(model: nn.Module, remedy: str) -> dict[str, WeightSite]:
    """The quantized weights of fewer than 8 bits, by the names that they are stored under.

    Args:
        model: The quantized model.
        remedy: Key of the remedy that works on them, for the message.

    Raises:
        RecipeError: There are none.
    """
    found = {name: site for name, site in weight_sites(model) if has_low_bits(site)}
    if not found:
        raise RecipeError(
            f"{remedy}: acts on weights of fewer than {LOW_BELOW} bits, and this model has none",
            hint=f"lower weights.bits, or leave {remedy} out of the phase",
        )
    return found


def has_low_bits(site: WeightSite) -> bool:
    """Whether a quantized weight has fewer than 8 bits."""
    assert site.weight_quantizer is not None
    return site.weight_quantizer.plan.bits < LOW_BELOW
