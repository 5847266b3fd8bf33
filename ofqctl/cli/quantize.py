"""``ofqctl quantize``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ofqctl.cli import options
from ofqctl.cli.output import Sink
from ofqctl.cli.summary import next_commands, run_summary

DEFAULT_RECIPE = "ptq/minmax"

EXAMPLES = (
    "ofqctl quantize deit_small --wbits 4 --abits 8 --calib-data imagenet/train --data imagenet/val",
    "ofqctl quantize deit_small --wbits 2 --abits 2",
    "ofqctl quantize local-dir:models/vit --recipe ptq/mse --set weights.bits=4 activations.bits=4",
    "ofqctl quantize vit_tiny --no-pretrained --num-classes 10 --calib-data digits --data digits --json",
)


def quantize(
    model: options.FloatModel,
    wbits: Annotated[
        str | None,
        typer.Option(help="Bits of the weights: 2-8, or 32 for float.", metavar="N", rich_help_panel="Recipe"),
    ] = None,
    abits: Annotated[
        str | None,
        typer.Option(help="Bits of the activations: 2-8, or 32 for float.", metavar="N", rich_help_panel="Recipe"),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Name of a recipe (see `ofqctl recipe ls`), or a YAML file.",
            metavar="NAME|FILE",
            rich_help_panel="Recipe",
        ),
    ] = DEFAULT_RECIPE,
    assignments: options.Assignments = None,
    calib_data: Annotated[
        str | None,
        typer.Option(
            help="Images to calibrate on, labels unused; without any, synthetic images are taken.",
            metavar="DATA",
            rich_help_panel="Data",
        ),
    ] = None,
    calib_split: Annotated[
        str | None,
        typer.Option(help="Part of it; by default the training part.", metavar="NAME", rich_help_panel="Data"),
    ] = None,
    calib_images: Annotated[
        str | None,
        typer.Option(help="Number of calibration images.", metavar="N", rich_help_panel="Data"),
    ] = None,
    data: options.Data = None,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    class_map: options.ClassMap = None,
    streaming: options.Streaming = False,
    checkpoint: options.Checkpoint = None,
    no_pretrained: options.NoPretrained = False,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Make anything left undone an error.", rich_help_panel="Output"),
    ] = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 0,
    seed: options.Seed = 0,
) -> None:
    """Quantize a float model, measure it beside the original, and write a run directory."""
    from ofqctl.recipe import catalogue

    shorthand = (("weights.bits", wbits), ("activations.bits", abits), ("calibration.images", calib_images))
    changes = [f"{path}={value}" for path, value in shorthand if value is not None]
    resolved = catalogue.load(recipe, [*changes, *(assignments or [])])

    from ofqctl.data import DataSpec
    from ofqctl.jobs.quantize import QuantizeRequest
    from ofqctl.jobs.quantize import quantize as run

    request = QuantizeRequest(
        model=options.model_request(
            model,
            checkpoint=checkpoint,
            no_pretrained=no_pretrained,
            num_classes=num_classes,
            img_size=img_size,
            model_kwargs=model_kwargs,
        ),
        recipe=resolved,
        output=output,
        calibration=DataSpec(calib_data, calib_split, image_column, streaming=streaming) if calib_data else None,
        data=options.data_spec(
            data,
            split=split,
            image_column=image_column,
            label_column=label_column,
            class_map=class_map,
            streaming=streaming,
        )
        if data
        else None,
        overwrite=overwrite,
        seed=seed,
        device=device,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
    )
    with Sink(as_json=as_json) as sink:
        sink.show(run(request, sink.progress), lambda result: _render(result, data))


def _render(result: dict[str, Any], data: str | None) -> Iterator[Any]:
    yield from run_summary(result)
    yield from next_commands(Path(result["output"]), data)
