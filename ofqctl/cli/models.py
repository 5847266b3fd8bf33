"""``ofqctl models``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ofqctl.cli import options
from ofqctl.cli.output import Table

if TYPE_CHECKING:
    from ofqctl.results.models import ModelsResult

EXAMPLES = ("ofqctl models", "ofqctl models deit", "ofqctl models 'vit_*_224' --json")


def models(
    pattern: Annotated[
        str | None,
        typer.Argument(
            metavar="PATTERN",
            help="Part of a name, or a quoted pattern with wildcards; without one, families are listed.",
        ),
    ] = None,
    *,
    printing: options.PrintOptions,
) -> None:
    """List timm's models, and how much of each family can be quantized."""
    from ofqctl.jobs.coverage import CoverageRequest, coverage

    with printing.sink() as sink:
        sink.show(coverage(CoverageRequest(pattern), sink.progress), _render)


def _render(result: "ModelsResult") -> Iterator[Table | str]:
    if result.pattern:
        table = Table(["model", "family", "pretrained", "backbone"])
        for model in result.models:
            table.add(
                model.name, model.family, *("yes" if is_so else "no" for is_so in (model.pretrained, model.backbone))
            )
        yield table
        yield ""
    columns = ["family", ">models", ">pretrained", ">backbones", "coverage", "qkr", "-attention left in float"]
    table = Table(columns)
    for family in result.families:
        table.add(
            family.family,
            family.models,
            family.pretrained,
            family.backbones,
            family.attention,
            "yes" if family.qkr else "",
            ", ".join(family.float_classes),
        )
    yield table
    yield ""
    yield from (f"{word:<9} {meaning}" for word, meaning in result.meaning.items())
    yield "backbones models whose weights have no classifier: they give embeddings, as any model does with --features"
    yield "qkr       query and key can be merged in at least one attention class of the family"
    yield "Determined from the code of each family: a model may use only some of its attention classes."
