"""``ofqctl evaluate``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_widths
from ofqctl.cli.embeddings import embedding_lines, embedding_rows
from ofqctl.cli.groups import group, option
from ofqctl.cli.output import Table

if TYPE_CHECKING:
    from ofqctl.recipe import Recipe
    from ofqctl.results.data import Prepared
    from ofqctl.results.evaluate import EvaluateEmbeddingsResult, EvaluateResult

EXAMPLES = (
    "ofqctl evaluate runs/deit_small_patch16_224-w4a4 --data imagenet/val",
    "ofqctl evaluate runs/deit_small_patch16_224-w4a4/model.onnx --data imagenet/val",
    "ofqctl evaluate deit_small --data imagenet/val --limit 1000 --workers 4",
    "ofqctl evaluate runs/vit-w3a3 --data imagenet/val --wbits 2,3,4,8",
    "ofqctl evaluate runs/dinov2-w4a8 --data imagenet/val --index-data imagenet/train --tokens",
    "ofqctl evaluate runs/deit_small_patch16_224-w4a4 --data imagenet/val --save-predictions w4a4.csv",
    "ofqctl evaluate runs/vit-w4a4/model.safetensors --data hfds/uoft-cs/cifar10 --split test --json",
)


@group("Data")
class _Data:
    data: str = option(
        "DATA",
        "Labelled images: folder with a subfolder per class, parquet folder, hfds/NAME or digits; "
        "for embeddings, any images.",
        default=...,
    )
    limit: int | None = option("N", "Number of images to use, drawn at random from all.", min=1)
    against: str | None = option(
        "MODEL", "Float model that embeddings are compared with; by default the one that a run was made from."
    )


@group("Bits")
class _Widths:
    wbits: str | None = option(
        "WIDTHS",
        "Round the weights to each of these widths as well, such as 2,3,4,8: the latent weights of a trained run, or "
        "those of a float model, its first and last layer to 8 bits.",
    )
    rounding: str | None = option(
        "RECIPE", "Recipe whose `weights` say how; by default to the least squared error in each output channel."
    )

    def widths(self) -> tuple[int, ...]:
        return () if self.wbits is None else parse_widths("--wbits", self.wbits)

    def recipe(self) -> "Recipe | None":
        from ofqctl.errors import RecipeError
        from ofqctl.recipe.catalogue import load

        if self.rounding is not None and self.wbits is None:
            raise RecipeError("--rounding: says how weights are rounded to the widths of --wbits, which is not given")
        return None if self.rounding is None else load(self.rounding)


@group("Output")
class _Output:
    save_predictions: Path | None = option(
        "FILE",
        "Write a row for each image to this .csv or .parquet file: its name, label, what was predicted, "
        "whether that is right, and the loss or, of embeddings, the cosine with the float model.",
    )


def evaluate(
    model: options.AnyModel,
    *,
    images: _Data,
    rounded: _Widths,
    output: _Output,
    embeddings: options.EmbeddingOptions,
    reading: options.StreamedDataOptions,
    subject: options.SubjectOptions,
    printing: options.PrintOptions,
    execution: options.BatchedOptions,
) -> None:
    """Measure accuracy, loss and speed of a run directory, an ONNX file or a float model.

    Of a model without a classifier: how alike its embeddings are to the float model's, and how well they find images.
    """
    from ofqctl.jobs.evaluate import EvaluateRequest
    from ofqctl.jobs.evaluate import evaluate as run

    request = EvaluateRequest(
        model=subject.request(model),
        data=reading.labelled(images.data),
        limit=images.limit,
        device=execution.device,
        batch_size=execution.batch_size,
        workers=execution.workers,
        normalization=subject.normalization(),
        index=embeddings.index(reading),
        against=images.against,
        tokens=embeddings.tokens,
        save_predictions=output.save_predictions,
        widths=rounded.widths(),
        rounding=rounded.recipe(),
    )
    with printing.sink() as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: "EvaluateResult | EvaluateEmbeddingsResult") -> Iterator[Table | str]:
    title = f"{result.model} ({result.recipe or result.kind})"
    yield _embeddings(result, title) if result.gives == "embeddings" else _classes(result, title)
    if result.gives == "classes" and result.widths:
        yield ""
        yield _widths(result)
    yield ""
    if result.gives == "embeddings":
        yield f"compared       with {result.against or 'no float model'}"
        yield from embedding_lines(result.neighbours, result.paired, " " * 15)
    yield f"data           {result.data}"
    yield f"classes        {result.labels}"
    yield f"preprocessing  {_preparation(result.preprocessing)}"
    yield from (f"               {note}" for note in result.data_notes)
    if result.turned:
        yield f"turned         {result.turned} images, upright as their EXIF orientation says"
    for skipped in result.skipped:
        yield f"skipped        {skipped.image}: {skipped.reason}"
    if result.saved_predictions:
        yield f"predictions    written to {result.saved_predictions}"


def _classes(result: "EvaluateResult", title: str) -> Table:
    table = Table(["", ">"], title=title)
    table.add("top-1 accuracy", f"{result.top1:.2f} %")
    table.add("top-5 accuracy", f"{result.top5:.2f} %")
    table.add("loss", f"{result.loss:.4f}")
    table.add("images", result.images)
    table.add("images/s", f"{result.images_per_second:.1f}")
    return table


def _widths(result: "EvaluateResult") -> Table:
    table = Table([">weights", ">top-1", ">top-5", ">loss"], title="The same weights, rounded")
    for rounded in result.widths:
        table.add(f"{rounded.wbits} bits", f"{rounded.top1:.2f} %", f"{rounded.top5:.2f} %", f"{rounded.loss:.4f}")
    return table


def _embeddings(result: "EvaluateEmbeddingsResult", title: str) -> Table:
    before = [] if result.float is None else [result.float]
    table = Table(["", *([">float model"] if before else []), f">{'this' if before else ''}"], title=title)
    embedding_rows(table, [*before, result])
    table.add("images", *([""] if before else []), result.images)
    return table


def _preparation(prepared: "Prepared") -> str:
    _, height, width = prepared.input_size
    return (
        f"{height}x{width} pixels, {prepared.interpolation}, crop {prepared.crop_pct:g} ({prepared.crop_mode}), "
        f"mean {_values(prepared.mean)}, std {_values(prepared.std)}"
    )


def _values(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
