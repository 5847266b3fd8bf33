"""Turn a timm model into a quantized model with the same modules swapped, and a plan that names every module."""

from torch import nn

from ofqctl.convert.planning import make_plan, notes_on_sizes
from ofqctl.convert.surgery import (
    apply_plan,
    describe,
    operand_holder,
    operands,
    origin_of,
    replace_modules,
    requantize,
    weight_site,
)
from ofqctl.convert.survey import takes_any_size
from ofqctl.recipe import Plan, Recipe


def convert(model: nn.Module, recipe: Recipe, input_size: tuple[int, int, int]) -> Plan:
    """Quantize ``model`` in place as ``recipe`` says; start values are set later, by calibration.

    Args:
        model: A float timm model.
        recipe: The recipe to follow.
        input_size: Size of one image, (3, H, W).

    Returns:
        The plan: what was done to every module, and what was left in float.
    """
    plan = make_plan(model, recipe, input_size)
    apply_plan(model, plan)
    return plan


__all__ = [
    "apply_plan",
    "convert",
    "describe",
    "make_plan",
    "notes_on_sizes",
    "operand_holder",
    "operands",
    "origin_of",
    "replace_modules",
    "requantize",
    "takes_any_size",
    "weight_site",
]
