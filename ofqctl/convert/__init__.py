"""timm model in; same model with its modules swapped, and a plan that names every module, out."""

from torch import nn

from ofqctl.convert.planning import make_plan
from ofqctl.convert.surgery import apply_plan, describe, operands, weight_site
from ofqctl.recipe import Plan, Recipe


def convert(model: nn.Module, recipe: Recipe, input_size: tuple[int, int, int]) -> Plan:
    """Quantize ``model`` in place as ``recipe`` says; start values are still to be calibrated.

    Args:
        model: A timm model in float.
        recipe: What to do.
        input_size: (3, H, W).

    Returns:
        What was done to every module, and what was left in float.
    """
    plan = make_plan(model, recipe, input_size)
    apply_plan(model, plan)
    return plan


__all__ = ["apply_plan", "convert", "describe", "make_plan", "operands", "weight_site"]
