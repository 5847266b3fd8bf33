"""``ofqctl predict``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ofqctl.cli import options
from ofqctl.cli.output import Sink, Table

EXAMPLES = (
    "ofqctl predict runs/deit_small_patch16_224-w4a4 cat.jpg dog.jpg",
    "ofqctl predict deit_small photos/ --top 1 --json",
    "ofqctl predict runs/deit_small_patch16_224-w4a4 --array x.npy --save-logits y.npy",
)


def predict(
    model: options.AnyModel,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE...", help="Image files, or folders of images.", show_default=False),
    ] = None,
    array: Annotated[
        Path | None,
        typer.Option(
            help="A .npy file with preprocessed float values (N, 3, H, W), instead of images.",
            metavar="FILE",
            rich_help_panel="Data",
        ),
    ] = None,
    save_logits: Annotated[
        Path | None,
        typer.Option(
            help="Write the logits, float32 (N, classes), to this .npy file.",
            metavar="FILE",
            rich_help_panel="Output",
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(help="Number of labels to print for each image.", metavar="N", min=1, rich_help_panel="Output"),
    ] = 5,
    checkpoint: options.Checkpoint = None,
    no_pretrained: options.NoPretrained = False,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    mean: options.Mean = None,
    std: options.Std = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 0,
) -> None:
    """Classify images, with probabilities, or compute the logits of a preprocessed array."""
    from ofqctl.jobs.predict import PredictRequest
    from ofqctl.jobs.predict import predict as run

    request = PredictRequest(
        model=options.model_request(model, checkpoint, no_pretrained, num_classes, img_size, model_kwargs),
        images=tuple(images or ()),
        array=array,
        save_logits=save_logits,
        top=top,
        device=device,
        batch_size=batch_size,
        workers=workers,
        normalization=options.normalization(mean, std),
    )
    with Sink(as_json=as_json) as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: dict[str, Any]) -> Iterator[Table | str]:
    table = Table(
        ["image", ">probability", ">label", "name"], title=f"{result['model']} ({result['recipe'] or result['kind']})"
    )
    for image in result["images"]:
        for rank, guess in enumerate(image["top"]):
            probability = f"{100 * guess['probability']:.1f} %"
            table.add("" if rank else image["image"], probability, guess["label"], guess["name"])
    yield table
    if result["turned"]:
        yield f"turned   {result['turned']} images, upright as their EXIF orientation says"
    for skipped in result["skipped"]:
        yield f"skipped  {skipped['image']}: {skipped['reason']}"
    if result["saved_logits"]:
        yield f"logits   written to {result['saved_logits']}"
