"""YAML and ``--set`` options -> recipe, and back; all faults are reported at once, each with its path."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ofqctl.errors import RecipeError, closest
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.registered import keys_at
from ofqctl.recipe.schema import Recipe

Values = dict[str, Any]

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where there is libyaml


def parse(text: str, *, where: str) -> Values:
    """YAML text as nested dictionaries.

    Args:
        text: A YAML mapping.
        where: What to call it in an error, such as its path.

    Raises:
        RecipeError: Not YAML, or not a mapping.
    """
    try:
        values = yaml.load(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys to values, not {type(values).__name__}")
    return values


def build(values: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe that nested dictionaries describe.

    Args:
        values: As in YAML.
        where: What to call it in an error.

    Raises:
        RecipeError: Every fault of it, one a line, each with its path.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_explain(fault, values) for fault in error.errors()]
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        raise RecipeError(
            "\n  ".join([f"{where}: {count}", *faults]), hint="`ofqctl recipe show NAME` prints a whole recipe"
        ) from error


def change(values: Mapping[str, Any], assignments: Sequence[str]) -> Values:
    """``values`` with ``a.b=c`` assignments carried out; ``c`` is YAML.

    Raises:
        RecipeError: An assignment without ``=``, or a path that leads through a plain value.
    """
    changed: Values = copy.deepcopy(dict(values))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"--set {assignment}: expected PATH=VALUE, such as weights.bits=4")
        try:
            value = yaml.load(text, Loader=_LOADER)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {assignment}: the value is not valid YAML") from error
        *parents, last = path.strip().split(".")
        spot: Any = changed
        for key in parents:
            spot = (
                spot[int(key)]
                if isinstance(spot, list) and key.isdigit() and int(key) < len(spot)
                else (spot.setdefault(key, {}) if isinstance(spot, dict) else None)
            )
        if isinstance(spot, list) and last.isdigit() and int(last) < len(spot):
            spot[int(last)] = value
        elif isinstance(spot, dict):
            if last == "method" and value != spot.get(last):
                _forget_settings(spot, value)
            spot[last] = value
        else:
            raise RecipeError(f"--set {assignment}: '{'.'.join(parents)}' has no keys to set")
    return changed


def _forget_settings(spot: Values, method: Any) -> None:
    """Drop what belongs to other quantizers: the settings of a method go with it."""
    every = {name: set(known.settings.model_fields) for name, known in QUANTIZERS.methods().items()}
    for name in set().union(*every.values()) - every.get(method, set()):
        spot.pop(name, None)


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def read_file(path: Path) -> Values:
    """A recipe file as nested dictionaries.

    Raises:
        RecipeError: Missing, unreadable or not YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise RecipeError(f"{path}: cannot be read: {reason}") from error
    return parse(text, where=str(path))


def _explain(fault: Any, values: Mapping[str, Any]) -> str:
    location = tuple(fault["loc"])
    path = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        known = keys_at(Recipe, values, location[:-1])
        match = closest(str(location[-1]), known)
        hint = f"did you mean '{match}'?" if match else f"allowed are {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if fault["type"] == "registered":
        return f"{path}: {fault['msg']}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    seen = "" if isinstance(fault["input"], dict) else f", seen {fault['input']!r}"
    return f"{path}: {message}{seen}"
