"""Read recipes from YAML and ``--set`` options, and write them; all errors are reported at once, each with its path."""

import copy
from collections import Counter
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

_MERGE = "tag:yaml.org,2002:merge"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # ten times as fast with libyaml
    """Refuses a key that stands twice in a mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """The mapping of a node."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE]
        counts = Counter((key.tag, key.value) for key in keys)
        twice = [key for key in keys if counts[key.tag, key.value] > 1]
        if twice:
            lines = ", ".join(str(key.start_mark.line + 1) for key in twice if key.value == twice[0].value)
            raise yaml.constructor.ConstructorError(None, None, f"'{twice[0].value}' stands twice: lines {lines}")
        return super().construct_mapping(node, deep)


def parse(text: str, *, where: str) -> Values:
    """Parse YAML text to nested dictionaries.

    Args:
        text: A YAML mapping.
        where: Its name in error messages, such as a path.

    Raises:
        RecipeError: The text is not YAML, or not a mapping.
    """
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error
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
        try:
            value = yaml.load(text, Loader=_Loader)
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
