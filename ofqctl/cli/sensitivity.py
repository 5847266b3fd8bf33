"""``ofqctl sensitivity``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_widths
from ofqctl.cli.output import Sink, Table

EXAMPLES = (
    "ofqctl sensitivity deit_small --calib-data imagenet/train --plot sensitivity.svg",
    "ofqctl sensitivity deit_small --calib-data imagenet/train --bits 2,3,4 --part weights --json",
)


def sensitivity(
    model: options.FloatModel,
    bits: Annotated[str, typer.Option(help="Bit-widths to try.", metavar="N,N,...")] = "2,3,4,8",
    part: Annotated[
        Literal["all", "weights", "activations"],
        typer.Option(help="Which part of a layer is quantized.", metavar="all|weights|activations"),
    ] = "all",
    recipe: Annotated[
        str,
        typer.Option(
            help="Recipe that says how a layer is quantized, except for the bits.",
            metavar="NAME|FILE",
            rich_help_panel="Recipe",
        ),
    ] = "ptq/mse",
    assignments: options.Assignments = None,
    calib_data: options.CalibData = None,
    calib_split: options.CalibSplit = None,
    calib_images: options.CalibImages = "32",
    image_column: options.ImageColumn = None,
    checkpoint: options.Checkpoint = None,
    no_pretrained: options.NoPretrained = False,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw the sensitivities to a .png, .svg or .pdf file.", metavar="FILE", rich_help_panel="Output"
        ),
    ] = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    workers: options.Workers = 0,
    seed: options.Seed = 0,
) -> None:
    """Rank layers by how much the model's predictions change when only that layer is quantized."""
    from ofqctl.recipe import catalogue

    widths = parse_widths("--bits", bits)
    resolved = catalogue.load(recipe, [f"calibration.images={calib_images}", *(assignments or [])])

    from ofqctl.data import DataSpec
    from ofqctl.jobs.sensitivity import SensitivityRequest
    from ofqctl.jobs.sensitivity import sensitivity as run

    request = SensitivityRequest(
        model=options.model_request(model, checkpoint, no_pretrained, num_classes, img_size, model_kwargs),
        recipe=resolved,
        calibration=DataSpec(calib_data, calib_split, image_column) if calib_data else None,
        bits=widths,
        part=part,
        plot=plot,
        seed=seed,
        device=device,
        workers=workers,
    )
    with Sink(as_json=as_json) as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: dict[str, Any]) -> Iterator[Table | str]:
    what = "weights and activations" if result["part"] == "all" else result["part"]
    title = f"{result['model']}: divergence of the predictions, nats, when only one layer's {what} are quantized"
    table = Table(["layer", *(f">{bits} bits" for bits in result["bits"])], title=title)
    for layer in result["layers"]:
        table.add(layer["layer"], *(f"{layer['kl'][str(bits)]:.4f}" for bits in result["bits"]))
    yield table
    yield ""
    yield f"measured  on {result['calibration']['images']} images of {result['calibration']['data']}"
    if result["plot"]:
        yield f"drawn     in {result['plot']}"
