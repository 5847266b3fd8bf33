"""``ofqctl evaluate``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ofqctl.cli import options
from ofqctl.cli.groups import group, option
from ofqctl.cli.output import Table

if TYPE_CHECKING:
    from ofqctl.results.data import Prepared
    from ofqctl.results.evaluate import EvaluateResult

EXAMPLES = (
    "ofqctl evaluate runs/deit_small_patch16_224-w4a4 --data imagenet/val",
    "ofqctl evaluate runs/deit_small_patch16_224-w4a4/model.onnx --data imagenet/val",
    "ofqctl evaluate deit_small --data imagenet/val --limit 1000 --workers 4",
    "ofqctl evaluate runs/vit-w4a4/model.safetensors --data hfds/uoft-cs/cifar10 --split test --json",
)


@group("Data")
class _Data:
    data: str = option(
        "DATA", "Labelled images: folder with a subfolder per class, parquet folder, hfds/NAME or digits.", default=...
    )
    limit: int | None = option("N", "Number of images to use, drawn at random from all.", min=1)


def evaluate(
    model: options.AnyModel,
    *,
    images: _Data,
    reading: options.StreamedDataOptions,
    subject: options.SubjectOptions,
    printing: options.PrintOptions,
    execution: options.BatchedOptions,
) -> None:
    """Measure accuracy, loss and speed of a run directory, an ONNX file or a float model."""
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
    )
    with printing.sink() as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: "EvaluateResult") -> Iterator[Table | str]:
    table = Table(["", ">"], title=f"{result.model} ({result.recipe or result.kind})")
    table.add("top-1 accuracy", f"{result.top1:.2f} %")
    table.add("top-5 accuracy", f"{result.top5:.2f} %")
    table.add("loss", f"{result.loss:.4f}")
    table.add("images", result.images)
    table.add("images/s", f"{result.images_per_second:.1f}")
    yield table
    yield ""
    yield f"data           {result.data}"
    yield f"classes        {result.labels}"
    yield f"preprocessing  {_preparation(result.preprocessing)}"
    yield from (f"               {note}" for note in result.data_notes)
    if result.turned:
        yield f"turned         {result.turned} images, upright as their EXIF orientation says"
    for skipped in result.skipped:
        yield f"skipped        {skipped.image}: {skipped.reason}"


def _preparation(prepared: "Prepared") -> str:
    _, height, width = prepared.input_size
    return (
        f"{height}x{width} pixels, {prepared.interpolation}, crop {prepared.crop_pct:g} ({prepared.crop_mode}), "
        f"mean {_values(prepared.mean)}, std {_values(prepared.std)}"
    )


def _values(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
