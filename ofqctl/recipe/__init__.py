"""What to do: recipes (for any model) and plans (for one model). Free of torch."""

from ofqctl.recipe.plan import LeftFloat, ModulePlan, Plan, QuantizerPlan
from ofqctl.recipe.schema import FLOAT_BITS, Activations, Override, Recipe, Weights, resolve_range

__all__ = [
    "FLOAT_BITS",
    "Activations",
    "LeftFloat",
    "ModulePlan",
    "Override",
    "Plan",
    "QuantizerPlan",
    "Recipe",
    "Weights",
    "resolve_range",
]
