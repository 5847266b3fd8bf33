"""``ofqctl distill-cache``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofqctl.cli import options
from ofqctl.cli.groups import group, option
from ofqctl.cli.output import Table, megabytes

if TYPE_CHECKING:
    from ofqctl.results.distill_cache import DistillCacheResult

EXAMPLES = (
    "ofqctl distill-cache deit_tiny --recipe vvtq/deit_tiny_w2a2 --data imagenet/train --views 150 "
    "--output soft.safetensors",
)


@group("Recipe")
class _Recipe:
    recipe: str = option("NAME|FILE", "Recipe of the training; says how crops are drawn.", default=...)


@group("Data")
class _Images(options.DataOptions):
    data: str = option("DATA", "Training images.", default=...)


@group("Output")
class _Output:
    output: Path = option("FILE", "File to write, .safetensors; replaced if it exists.", default=...)
    views: int = option("N", "Number of crops of each image.", default=32, min=1)
    top: int = option("N", "Number of classes whose probability is stored.", default=5, min=1)


@group("Execution")
class _Execution(options.BatchedOptions):
    seed: int = option("N", "Number that the crops are drawn from.", default=0, min=0)


def distill_cache(
    teacher: Annotated[
        str, typer.Argument(metavar="TEACHER", help="Classifier: timm name, local-dir:PATH or a run directory.")
    ],
    *,
    recipe: _Recipe,
    settings: options.RecipeOptions,
    images: _Images,
    output: _Output,
    weights: options.ModelOptions,
    printing: options.PrintOptions,
    execution: _Execution,
) -> None:
    """Write what a teacher says of crops of the training images, so that training needs no teacher."""
    from ofqctl.jobs.distill_cache import DistillCacheRequest
    from ofqctl.jobs.distill_cache import distill_cache as run
    from ofqctl.recipe.catalogue import load

    request = DistillCacheRequest(
        teacher=weights.request(teacher),
        recipe=load(recipe.recipe, settings.changes()),
        data=images.labelled(images.data),
        output=output.output,
        views=output.views,
        top=output.top,
        seed=execution.seed,
        device=execution.device,
        batch_size=execution.batch_size,
        workers=execution.workers,
    )
    with printing.sink() as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: "DistillCacheResult") -> Iterator[Table | str]:
    table = Table(["", ">"], title=f"Soft labels of {result.teacher}")
    table.add("images", result.images)
    table.add("crops of each", result.views)
    table.add("classes stored", result.top)
    table.add("probability stored", f"{100 * result.covered:.1f} %")
    table.add("size", megabytes(result.bytes))
    yield table
    yield ""
    yield f"data     {result.data}"
    for skipped in result.skipped:
        yield f"skipped  {skipped.image}: {skipped.reason}"
    yield f"written  to {result.output}"
