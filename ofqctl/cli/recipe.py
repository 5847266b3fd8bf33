"""``ofqctl recipe ls|show|check|copy``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofqctl.cli import options
from ofqctl.cli.commands import command
from ofqctl.cli.output import Aside, Table
from ofqctl.files import output_file, replaced_file

if TYPE_CHECKING:
    from ofqctl.results.recipes import RecipeListResult

NameOrFile = Annotated[
    str, typer.Argument(metavar="NAME|FILE", help="A shipped recipe, or a YAML file.", show_default=False)
]

app = typer.Typer(no_args_is_help=True, help="List, show, check and copy recipes.")


@command(app, "ls", "ofqctl recipe ls", "ofqctl recipe ls --json")
def list_recipes(printing: options.PrintOptions) -> None:
    """List the recipes that come with ofqctl."""
    from ofqctl.recipe import catalogue
    from ofqctl.results.recipes import RecipeListResult

    with printing.sink() as sink:
        sink.show(RecipeListResult.model_validate({"recipes": catalogue.overview()}), _render_list)


@command(app, "show", "ofqctl recipe show ptq/mse", "ofqctl recipe show ptq/mse --set weights.bits=4")
def show(name: NameOrFile, *, settings: options.RecipeOptions, printing: options.PrintOptions) -> None:
    """Print a complete recipe as YAML, with all defaults."""
    from ofqctl.recipe import catalogue
    from ofqctl.recipe.reading import to_yaml
    from ofqctl.results.recipes import RecipeShowResult

    recipe = catalogue.load(name, settings.changes())
    with printing.sink() as sink:
        sink.show(RecipeShowResult(**dict(recipe)), lambda _: [to_yaml(recipe).rstrip()])


@command(app, "check", "ofqctl recipe check my.yaml")
def check(name: NameOrFile, *, settings: options.RecipeOptions, printing: options.PrintOptions) -> None:
    """Check a recipe; every error is listed with its path."""
    from ofqctl.recipe import catalogue
    from ofqctl.results.recipes import RecipeCheckResult

    recipe = catalogue.load(name, settings.changes())
    result = RecipeCheckResult(recipe=recipe.name, path=str(catalogue.path_of(name)))
    with printing.sink() as sink:
        sink.show(result, lambda _: [f"{name}: no errors found"])


@command(app, "copy", "ofqctl recipe copy ptq/mse my.yaml")
def copy(
    name: NameOrFile,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.", show_default=False)],
    *,
    overwrite: options.Overwrite = False,
    printing: options.PrintOptions,
) -> None:
    """Copy a recipe to a file that can be edited."""
    from ofqctl.recipe import catalogue
    from ofqctl.results.recipes import RecipeCopyResult

    catalogue.load(name)
    text = catalogue.path_of(name).read_text(encoding="utf-8")
    with output_file(file, overwrite=overwrite), replaced_file(file) as fresh:
        fresh.write_text(text, encoding="utf-8")
    with printing.sink() as sink:
        next_step = f"ofqctl quantize MODEL --recipe {file}"
        sink.show(
            RecipeCopyResult(recipe=name, file=str(file)),
            lambda _: [f"{name} copied to {file}", Aside(f"Next: edit it, then `{next_step}`")],
        )


def _render_list(result: "RecipeListResult") -> Iterator[Table]:
    table = Table(["recipe", ">weight bits", ">act. bits", "description"])
    for recipe in result.recipes:
        table.add(recipe.name, recipe.bits.weights, recipe.bits.activations, recipe.description)
    yield table
