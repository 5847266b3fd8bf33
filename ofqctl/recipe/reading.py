"""Read recipes from YAML and ``--set`` options, and write them; all errors are reported at once, each with its path."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ofqctl.documents import parse_yaml, read_text, short
from ofqctl.errors import RecipeError, closest
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.registered import keys_at
from ofqctl.recipe.schema import Recipe

Values = dict[str, Any]


def parse(text: str, *, where: str) -> Values:
    """Parse YAML text to nested dictionaries.

    Args:
        text: A YAML mapping.
        where: Its name in error messages, such as a path.

    Raises:
        RecipeError: The text is not YAML, or not a mapping.
    """
    values = parse_yaml(text, where, RecipeError)
    if not isinstance(values, dict):
        raise RecipeError(f"{where}: a recipe is a mapping of keys to values, not {type(values).__name__}")
    return values


def build(values: Mapping[str, Any], *, where: str) -> Recipe:
    """Validate nested dictionaries to a recipe.

    Args:
        values: Content of the recipe, as in YAML.
        where: Its name in error messages.

    Raises:
        RecipeError: It is invalid; the message lists every error on a line, with its path.
    """
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = [_explain(fault, values) for fault in error.errors()]
        count = "1 error" if len(faults) == 1 else f"{len(faults)} errors"
        raise RecipeError(
            "\n  ".join([f"{where}: {count}", *faults]), hint="`ofqctl recipe show NAME` prints a complete recipe"
        ) from error


def change(values: Mapping[str, Any], assignments: Sequence[str]) -> Values:
    """``values`` with ``a.b=c`` assignments applied; ``c`` is YAML.

    Raises:
        RecipeError: An assignment has no ``=``, or its path leads through a plain value.
    """
    changed: Values = copy.deepcopy(dict(values))
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"--set {assignment}: expected PATH=VALUE, such as weights.bits=4")
        value = parse_yaml(text, f"--set {assignment}", RecipeError)
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
    """Drop settings of other quantizers when the method is changed."""
    every = {name: set(known.settings.model_fields) for name, known in QUANTIZERS.methods().items()}
    for name in set().union(*every.values()) - every.get(method, set()):
        spot.pop(name, None)


def to_yaml(recipe: Recipe) -> str:
    """The complete recipe as YAML, with all defaults."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def read_file(path: Path) -> Values:
    """Read a recipe file to nested dictionaries.

    Raises:
        RecipeError: The file is missing, unreadable or not YAML.
    """
    text = read_text(path, RecipeError)
    return parse(text, where=str(path))


def _explain(fault: Any, values: Mapping[str, Any]) -> str:
    location = tuple(fault["loc"])
    path = ".".join(short(part, "s") for part in location)
    if fault["type"] == "extra_forbidden":
        known = keys_at(Recipe, values, location[:-1])
        match = closest(str(location[-1]), known)
        hint = f"did you mean '{match}'?" if match else f"allowed are {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if fault["type"] == "registered":
        return f"{path}: {fault['msg']}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    seen = "" if isinstance(fault["input"], dict) else f", seen {short(fault['input'])}"
    return f"{path}: {message}{seen}"
