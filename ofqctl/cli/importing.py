"""``ofqctl import``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_model_kwargs
from ofqctl.cli.output import Sink
from ofqctl.cli.summary import next_commands, run_summary

EXAMPLES = (
    "ofqctl import deit_t_w2a2.pth.tar --model deit_tiny_distilled_patch16_224 --wbits 2 --abits 2",
    "ofqctl import small.pth.tar --wbits 3 --abits 3 --model-kwargs embed_dim=48 depth=2 --output runs/small",
)


def import_(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The .pth.tar; no code in it is executed.", show_default=False),
    ],
    wbits: Annotated[
        int,
        typer.Option(
            help="Bits of its weights, which the file does not contain.",
            metavar="N",
            rich_help_panel="Model",
            show_default=False,
        ),
    ],
    abits: Annotated[
        int,
        typer.Option(
            help="Bits of its activations, which the file does not contain.",
            metavar="N",
            rich_help_panel="Model",
            show_default=False,
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="timm's name of the architecture; by default that in the file.",
            metavar="NAME",
            rich_help_panel="Model",
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Number of classes; by default that in the file.", metavar="N", rich_help_panel="Model"),
    ] = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Convert a checkpoint of the OFQ authors to a run directory."""
    from ofqctl.jobs.importing import ImportRequest, import_checkpoint

    request = ImportRequest(
        checkpoint=file,
        wbits=wbits,
        abits=abits,
        model=model,
        num_classes=num_classes,
        img_size=img_size,
        kwargs=parse_model_kwargs(model_kwargs or []),
        output=output,
        overwrite=overwrite,
    )
    with Sink(as_json=as_json) as sink:
        sink.show(import_checkpoint(request, sink.progress), _render)


def _render(result: dict[str, Any]) -> Iterator[Any]:
    yield from run_summary(result)
    yield from next_commands(Path(result["output"]), None)
