"""``ofqctl predict``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofqctl.cli import options
from ofqctl.cli.groups import group, option
from ofqctl.cli.output import Table

if TYPE_CHECKING:
    from ofqctl.results.predict import PredictEmbeddingsResult, PredictResult

EXAMPLES = (
    "ofqctl predict runs/deit_small_patch16_224-w4a4 cat.jpg dog.jpg",
    "ofqctl predict deit_small photos/ --top 1 --json",
    "ofqctl predict runs/dinov2-w4a8 photos/ --save-embeddings photos.parquet",
    "ofqctl predict runs/deit_small_patch16_224-w4a4 --array x.npy --save-logits y.npy",
)


@group("Data")
class _Data:
    array: Path | None = option("FILE", "A .npy file with preprocessed float values (N, 3, H, W), instead of images.")


@group("Output")
class _Output:
    save_logits: Path | None = option("FILE", "Write the logits, float32 (N, classes), to this .npy file.")
    save_embeddings: Path | None = option(
        "FILE",
        "Write the embeddings of a model without a classifier, with the names of the images, to this .npy (names in a "
        ".json beside it), .safetensors or .parquet file.",
    )
    top: int = option("N", "Number of labels to print for each image.", default=5, min=1)


def predict(
    model: options.AnyModel,
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGE...", help="Image files, or folders of images.", show_default=False),
    ] = None,
    *,
    data: _Data,
    output: _Output,
    subject: options.SubjectOptions,
    printing: options.PrintOptions,
    execution: options.BatchedOptions,
) -> None:
    """Classify images, with probabilities, or embed them with a model without a classifier."""
    from ofqctl.jobs.predict import PredictRequest
    from ofqctl.jobs.predict import predict as run

    request = PredictRequest(
        model=subject.request(model),
        images=tuple(images or ()),
        array=data.array,
        save_logits=output.save_logits,
        save_embeddings=output.save_embeddings,
        top=output.top,
        device=execution.device,
        batch_size=execution.batch_size,
        workers=execution.workers,
        normalization=subject.normalization(),
    )
    with printing.sink() as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: "PredictResult | PredictEmbeddingsResult") -> Iterator[Table | str]:
    title = f"{result.model} ({result.recipe or result.kind})"
    yield _embeddings(result, title) if result.gives == "embeddings" else _classes(result, title)
    if result.turned:
        yield f"turned   {result.turned} images, upright as their EXIF orientation says"
    for skipped in result.skipped:
        yield f"skipped  {skipped.image}: {skipped.reason}"
    if result.gives == "classes" and result.saved_logits:
        yield f"logits   written to {result.saved_logits}"
    if result.gives == "embeddings" and result.saved_embeddings:
        yield f"written  to {result.saved_embeddings}"


def _classes(result: "PredictResult", title: str) -> Table:
    table = Table(["image", ">probability", ">label", "name"], title=title)
    for image in result.images:
        for rank, guess in enumerate(image.top):
            table.add("" if rank else image.image, f"{100 * guess.probability:.1f} %", guess.label, guess.name)
    return table


def _embeddings(result: "PredictEmbeddingsResult", title: str) -> Table:
    table = Table(["image", ">features", ">length", "most like it", ">cosine"], title=title)
    for image in result.images:
        cosine = "" if image.cosine is None else f"{image.cosine:.4f}"
        table.add(image.image, image.features, f"{image.length:.3g}", image.nearest or "", cosine)
    return table
