"""``ofqctl import``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofqctl.cli import options
from ofqctl.cli.groups import group, option
from ofqctl.cli.summary import next_commands, run_summary

if TYPE_CHECKING:
    from ofqctl.results.importing import ImportResult

EXAMPLES = (
    "ofqctl import deit_t_w2a2.pth.tar --model deit_tiny_distilled_patch16_224 --wbits 2 --abits 2",
    "ofqctl import small.pth.tar --wbits 3 --abits 3 --model-kwargs embed_dim=48 depth=2 --output runs/small",
)


@group("Model")
class _Model(options.ArchitectureOptions):
    wbits: int = option("N", "Bits of its weights, which the file does not contain.", default=...)
    abits: int = option("N", "Bits of its activations, which the file does not contain.", default=...)
    model: str | None = option("NAME", "timm's name of the architecture; by default that in the file.")
    num_classes: int | None = option("N", "Number of classes; by default that in the file.")


def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The .pth.tar; no code in it is executed.", show_default=False),
    ],
    *,
    said: _Model,
    output: options.RunOptions,
    printing: options.PrintOptions,
) -> None:
    """Convert a checkpoint of the OFQ authors to a run directory."""
    from ofqctl.jobs.importing import ImportRequest, import_checkpoint

    request = ImportRequest(
        checkpoint=file,
        wbits=said.wbits,
        abits=said.abits,
        model=said.model,
        num_classes=said.num_classes,
        img_size=said.size(),
        kwargs=said.kwargs(),
        output=output.output,
        overwrite=output.overwrite,
    )
    with printing.sink() as sink:
        sink.show(import_checkpoint(request, sink.progress), _render)


def _render(result: "ImportResult") -> Iterator[Any]:
    yield from run_summary(result)
    yield from next_commands(Path(str(result.output)), None)
