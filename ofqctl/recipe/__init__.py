"""Recipes (for any model) and plans (for one model). Does not import torch until a method is looked up."""

from ofqctl.recipe.methods import PTQ_STAGES, QUANTIZERS, REMEDIES, TERMS
from ofqctl.recipe.plan import LeftFloat, ModulePlan, Plan, QuantizerPlan, quantizer_plan
from ofqctl.recipe.schema import FLOAT_BITS, Activations, Override, Recipe, Weights

__all__ = [
    "FLOAT_BITS",
    "PTQ_STAGES",
    "QUANTIZERS",
    "REMEDIES",
    "TERMS",
    "Activations",
    "LeftFloat",
    "ModulePlan",
    "Override",
    "Plan",
    "QuantizerPlan",
    "Recipe",
    "Weights",
    "quantizer_plan",
]
