"""YAML and ``--set`` options -> recipe, and back; all faults are reported at once, each with its path."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ofqctl.errors import RecipeError, closest
from ofqctl.recipe.schema import Recipe

Values = dict[str, Any]


def parse(text: str, *, where: str) -> Values:
    """YAML text as nested dictionaries.

    Args:
        text: A YAML mapping.
        where: What to call it in an error, such as its path.

    Raises:
        RecipeError: Not YAML, or not a mapping.
    """
    try:
        values = yaml.safe_load(text)
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
        faults = [_explain(fault) for fault in error.errors()]
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
            value = yaml.safe_load(text)
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
            spot[last] = value
        else:
            raise RecipeError(f"--set {assignment}: '{'.'.join(parents)}' has no keys to set")
    return changed


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


def _explain(fault: Any) -> str:
    location = tuple(fault["loc"])
    path = ".".join(str(part) for part in location)
    if fault["type"] == "extra_forbidden":
        known = list(_keys_at(location[:-1]))
        match = closest(str(location[-1]), known)
        hint = f"did you mean '{match}'?" if match else f"allowed are {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if fault["type"] == "union_tag_not_found":
        return f"{path}: step is missing; it says what is done"
    if fault["type"] == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in fault["ctx"]["expected_tags"].split(",")]
        match = closest(fault["ctx"]["tag"], known)
        hint = f"did you mean '{match}'?" if match else f"allowed are {', '.join(known)}"
        return f"{path}.step: '{fault['ctx']['tag']}' is unknown; {hint}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    seen = "" if isinstance(fault["input"], dict) else f", seen {fault['input']!r}"
    return f"{path}: {message}{seen}"


def _keys_at(location: Sequence[int | str]) -> Iterator[str]:
    """Keys that the schema knows at ``location``."""
    model: type[BaseModel] = Recipe
    among: list[type[BaseModel]] = []
    for part in location:
        if part in model.model_fields:
            among = list(_models_in(model.model_fields[str(part)].annotation))
            model = among[0] if among else model
        else:  # an index, or the name that tells which of several classes a step is of
            model = next((m for m in among if part in _names_of(m)), model)
    yield from model.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The model classes inside an annotation such as ``Weights | None`` or ``tuple[Override, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _names_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """What the ``step`` of a model may be, if it has one."""
    field = model.model_fields.get("step")
    return () if field is None else get_args(field.annotation)
