"""Convert stored recipes and plans of earlier versions to the current form.

In format 1 every quantizer had the settings of all methods. Those of other methods had no effect and are dropped.
Until the stages of post-training quantization were called ``stage``, their key was ``step``, in format 2 as well.
"""

from collections.abc import Mapping
from typing import Any

from ofqctl.recipe.methods import QUANTIZERS

_SETTINGS_OF_ALL = ("symmetric", "range", "percentile", "start")


def recipe_from_format_1(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe with each quantizer's own settings only."""
    first, last = (_layer(recipe.get(name) or {}) for name in ("first", "last"))
    return _layer(recipe) | {"first": first, "last": last, "layers": [_layer(own) for own in recipe.get("layers", ())]}


def with_current_keys(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe, of any format, with the current names of the keys of ``ptq``; current recipes stay as they are."""
    stages = recipe.get("ptq")
    return {**recipe, "ptq": [_stage(stage) for stage in stages]} if isinstance(stages, list | tuple) else {**recipe}


def plan_from_format_1(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with each quantizer's own settings only; with zero points, ``signed`` is left to the data."""
    return {**plan, "modules": {name: _module(module) for name, module in plan.get("modules", {}).items()}}


def _stage(values: Any) -> Any:
    if not isinstance(values, Mapping) or "stage" in values:
        return values
    current = {"step": "stage"} | ({"steps": "iterations"} if values.get("step") == "reconstruct" else {})
    return {current.get(key, key): value for key, value in values.items()}


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
