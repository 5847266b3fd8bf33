"""Recipes and plans as format 1 wrote them, in today's form.

There every quantizer had the settings of all methods, whatever its own was. Foreign ones did nothing and are dropped.
"""

from collections.abc import Mapping
from typing import Any

from ofqctl.recipe.methods import QUANTIZERS

_SETTINGS_OF_ALL = ("symmetric", "range", "percentile", "start")


def recipe_from_format_1(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with each quantizer's own settings alone."""
    first, last = (_layer(recipe.get(name) or {}) for name in ("first", "last"))
    return _layer(recipe) | {"first": first, "last": last, "layers": [_layer(own) for own in recipe.get("layers", ())]}


def plan_from_format_1(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with each quantizer's own settings alone; a sign that zero points decide is left open."""
    return {**plan, "modules": {name: _module(module) for name, module in plan.get("modules", {}).items()}}


def _layer(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, **{part: _own(values[part]) for part in ("weights", "activations") if values.get(part)}}


def _module(values: Mapping[str, Any]) -> dict[str, Any]:
    weight, operands = values.get("weight"), values.get("operands") or {}
    return {
        **values,
        "weight": weight and _planned(weight),
        "operands": {name: _planned(operand) for name, operand in operands.items()},
    }


def _planned(values: Mapping[str, Any]) -> dict[str, Any]:
    own = _own(values)
    return own if own.get("symmetric", True) else own | {"signed": None}


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    method = values.get("method", "uniform")
    known = QUANTIZERS[method].settings.model_fields if method in QUANTIZERS else {}
    return {key: value for key, value in values.items() if key in known or key not in _SETTINGS_OF_ALL}
