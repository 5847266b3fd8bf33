"""The recipes that come with the package; load recipes by name or file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ofqctl.errors import RecipeError, did_you_mean
from ofqctl.recipe.reading import Values, build, change, read_file
from ofqctl.recipe.schema import Recipe

STUDIES = "studies"  # folder among those of the recipes

_PACKAGE = Path(__file__).resolve().parent.parent


def folder() -> Path:
    """Folder of the shipped recipes: inside the installed package, or beside it in a source tree."""
    installed = _PACKAGE / "recipes"
    return installed if installed.is_dir() else _PACKAGE.parent / "recipes"


def names() -> list[str]:
    """Names of the shipped recipes, such as ``ptq/mse``."""
    root = folder()
    every = (path.relative_to(root) for path in root.rglob("*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in every if path.parts[0] != STUDIES)


def overview() -> list[dict[str, Any]]:
    """Name, bits and description of every shipped recipe; the rest of its file is not validated."""
    every = []
    for name in names():
        values = read_file(folder() / f"{name}.yaml")
        bits = {part: values[part]["bits"] for part in ("weights", "activations")}
        every.append({"name": name, "bits": bits, "description": values["description"]})
    return every


def path_of(name: str) -> Path:
    """Path of a shipped recipe, or of the recipe file that ``name`` is the path of.

    Raises:
        RecipeError: It is neither; the message suggests the most similar name.
    """
    if name in names():
        return folder() / f"{name}.yaml"
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    hint = did_you_mean(name, names()) or "`ofqctl recipe ls` lists the recipes; a file ends in .yaml"
    raise RecipeError(f"recipe '{name}': no shipped recipe of this name, and no such file", hint=hint)


def load(name: str, assignments: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or file, with ``a.b=c`` assignments applied.

    Raises:
        RecipeError: It is unknown, unreadable or invalid; the message lists all errors.
    """
    values: Values = read_file(path_of(name))
    values.setdefault("name", Path(name).stem if Path(name).suffix else name)
    return build(change(values, assignments), where=f"recipe '{name}'")
