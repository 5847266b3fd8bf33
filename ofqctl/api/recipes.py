"""Recipes as a caller gives them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ofqctl.recipe import Recipe, catalogue
from ofqctl.recipe.reading import build, change

AnyRecipe = str | Path | Recipe | Mapping[str, Any]
"""The name of a shipped recipe, a YAML file, a recipe, or what a YAML file would hold."""


def recipe_of(given: AnyRecipe, changes: Mapping[str, Any] | None) -> Recipe:
    """The recipe, with changes such as ``{"weights.bits": 4}``.

    Raises:
        RecipeError: It is unknown or invalid; the message lists all errors.
    """
    assignments = [f"{key}={json.dumps(value)}" for key, value in (changes or {}).items()]
    if isinstance(given, str | Path):
        return catalogue.load(str(given), assignments)
    values = given.model_dump(mode="json") if isinstance(given, Recipe) else dict(given)
    return build(change(values, assignments), where=f"recipe '{values.get('name', 'custom')}'")
