"""``ofqctl evaluate``."""

from collections.abc import Iterator
from typing import Any

from ofqctl.cli import options
from ofqctl.cli.output import Sink, Table

EXAMPLES = (
    "ofqctl evaluate runs/deit_small_patch16_224-w4a4 --data imagenet/val",
    "ofqctl evaluate runs/deit_small_patch16_224-w4a4/model.onnx --data imagenet/val",
    "ofqctl evaluate deit_small --data imagenet/val --limit 1000 --workers 4",
    "ofqctl evaluate runs/vit-w4a4/model.safetensors --data hfds/uoft-cs/cifar10 --split test --json",
)


def evaluate(
    model: options.AnyModel,
    data: options.RequiredData,
    split: options.Split = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    class_map: options.ClassMap = None,
    streaming: options.Streaming = False,
    limit: options.Limit = None,
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
    """Measure accuracy, loss and speed of a run directory, an ONNX file or a float model."""
    from ofqctl.jobs.evaluate import EvaluateRequest
    from ofqctl.jobs.evaluate import evaluate as run

    request = EvaluateRequest(
        model=options.model_request(model, checkpoint, no_pretrained, num_classes, img_size, model_kwargs),
        data=options.data_spec(data, split, image_column, label_column, class_map, streaming),
        limit=limit,
        device=device,
        batch_size=batch_size,
        workers=workers,
        normalization=options.normalization(mean, std),
    )
    with Sink(as_json=as_json) as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: dict[str, Any]) -> Iterator[Table | str]:
    table = Table(["", ">"], title=f"{result['model']} ({result['recipe'] or result['kind']})")
    table.add("top-1 accuracy", f"{result['top1']:.2f} %")
    table.add("top-5 accuracy", f"{result['top5']:.2f} %")
    table.add("loss", f"{result['loss']:.4f}")
    table.add("images", result["images"])
    table.add("images/s", f"{result['images_per_second']:.1f}")
    yield table
    prepared = result["preprocessing"]
    height, width = prepared["input_size"][1:]
    yield ""
    yield f"data           {result['data']}"
    yield f"classes        {result['labels']}"
    yield (
        f"preprocessing  {height}x{width} pixels, {prepared['interpolation']}, crop {prepared['crop_pct']} "
        f"({prepared['crop_mode']}), mean {_values(prepared['mean'])}, std {_values(prepared['std'])}"
    )
    yield from (f"               {note}" for note in result["data_notes"])
    if result["turned"]:
        yield f"turned         {result['turned']} images, upright as their EXIF orientation says"
    for skipped in result["skipped"]:
        yield f"skipped        {skipped['image']}: {skipped['reason']}"


def _values(numbers: list[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)
