"""The results of ``ofqctl recipe ls``, ``show``, ``check`` and ``copy``."""

from typing import Literal

from ofqctl.recipe.schema import Recipe
from ofqctl.results.document import Document, Part
from ofqctl.results.run import Bits


class ListedRecipe(Part):
    """A shipped recipe: its name, bits and description."""

    name: str
    bits: Bits
    description: str


class RecipeListResult(Document):
    """The shipped recipes."""

    command: Literal["recipe ls"] = "recipe ls"
    recipes: tuple[ListedRecipe, ...]


class RecipeShowResult(Recipe, Document):
    """A complete recipe, with all defaults."""

    command: Literal["recipe show"] = "recipe show"


class RecipeCheckResult(Document):
    """A recipe without errors: its name and its file."""

    command: Literal["recipe check"] = "recipe check"
    recipe: str
    path: str
    valid: Literal[True] = True


class RecipeCopyResult(Document):
    """A recipe that was copied: its name, and the file."""

    command: Literal["recipe copy"] = "recipe copy"
    recipe: str
    file: str
