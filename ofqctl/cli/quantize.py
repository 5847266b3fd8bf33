"""``ofqctl quantize``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_size, parse_widths
from ofqctl.cli.output import Sink
from ofqctl.cli.summary import next_commands, run_summary, training_hint
from ofqctl.errors import RecipeError

if TYPE_CHECKING:
    from ofqctl.jobs.mixing import Target

AT_8_BITS, WITH_IMAGES, WITHOUT_IMAGES = "deploy/w8a8", "ptq/best", "ptq/minmax"
_MIXED = "Mixed precision"
Cost = Literal["bits", "latency"]

EXAMPLES = (
    "ofqctl quantize deit_small --wbits 4 --abits 8 --calib-data imagenet/train --data imagenet/val",
    "ofqctl quantize deit_small --recipe ptq/minmax --calib-data imagenet/train --data imagenet/val",
    "ofqctl quantize deit_small --target-bits 4.0 --calib-data imagenet/train",
    "ofqctl quantize local-dir:models/vit --recipe ptq/mse --set weights.bits=4 activations.bits=4",
    "ofqctl quantize vit_tiny --no-pretrained --num-classes 10 --calib-data digits --data digits --json",
)


def quantize(
    model: options.FloatModel,
    wbits: Annotated[
        str | None,
        typer.Option(help="Bits of the weights: 1-8, or 32 for float.", metavar="N", rich_help_panel="Recipe"),
    ] = None,
    abits: Annotated[
        str | None,
        typer.Option(help="Bits of the activations: 1-8, or 32 for float.", metavar="N", rich_help_panel="Recipe"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Name of a recipe (see `ofqctl recipe ls`), or a YAML file; "
            f"by default {AT_8_BITS} at 8 bits with --calib-data, {WITH_IMAGES} at others, {WITHOUT_IMAGES} without.",
            metavar="NAME|FILE",
            rich_help_panel="Recipe",
        ),
    ] = None,
    assignments: options.Assignments = None,
    target_bits: Annotated[
        float | None,
        typer.Option(
            help="Mixed precision: average bits of the weights, allocated by each layer's sensitivity.",
            metavar="BITS",
            rich_help_panel=_MIXED,
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option(
            help="Mixed precision: largest size of the weights' file, such as 3MB.",
            metavar="SIZE",
            rich_help_panel=_MIXED,
        ),
    ] = None,
    candidates: Annotated[
        str,
        typer.Option(help="Bit-widths that a layer can get.", metavar="N,N,...", rich_help_panel=_MIXED),
    ] = "2,3,4,5,6,8",
    cost: Annotated[
        Cost,
        typer.Option(
            help="What --target-bits limits: the average, or the time that layers take at so many bits, measured here.",
            rich_help_panel=_MIXED,
        ),
    ] = "bits",
    calib_data: options.CalibData = None,
    calib_split: options.CalibSplit = None,
    calib_images: options.CalibImages = None,
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
        typer.Option(
            "--strict",
            help="Fail if anything was left undone, left out or guessed: a module in float, an image skipped.",
            rich_help_panel="Output",
        ),
    ] = False,
    as_json: options.Json = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    workers: options.Workers = 0,
    seed: options.Seed = 0,
    time_budget: Annotated[
        float | None,
        typer.Option(
            help="Time limit in seconds for the stages after calibration; a note says what was left out.",
            metavar="SECONDS",
            rich_help_panel="Execution",
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the quantizers: about half a minute first, then faster; needs a C++ compiler.",
            rich_help_panel="Execution",
        ),
    ] = False,
) -> None:
    """Quantize a float model, measure both, and write a run directory."""
    from ofqctl.recipe import catalogue

    shorthand = (("weights.bits", wbits), ("activations.bits", abits), ("calibration.images", calib_images))
    changes = [f"{path}={value}" for path, value in shorthand if value is not None]
    mixed = target_bits is not None or target_size is not None
    at_8_bits = wbits in (None, "8") and abits in (None, "8") and not mixed
    default = (AT_8_BITS if at_8_bits else WITH_IMAGES) if calib_data else WITHOUT_IMAGES
    name = recipe or default
    resolved = catalogue.load(name, [*changes, *(assignments or [])])

    from ofqctl.data import DataSpec
    from ofqctl.jobs.quantize import QuantizeRequest
    from ofqctl.jobs.quantize import quantize as run

    request = QuantizeRequest(
        model=options.model_request(model, checkpoint, no_pretrained, num_classes, img_size, model_kwargs),
        recipe=resolved,
        output=output,
        calibration=DataSpec(calib_data, calib_split, image_column, streaming=streaming) if calib_data else None,
        data=options.data_spec(data, split, image_column, label_column, class_map, streaming) if data else None,
        overwrite=overwrite,
        seed=seed,
        device=device,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
        target=_target(target_bits, target_size, candidates, cost),
        time_budget=time_budget,
        compiled=compiled,
    )
    with Sink(as_json=as_json) as sink:
        sink.show(run(request, sink.progress), lambda result: _render(result, model, data, chosen=recipe is not None))


def _target(bits: float | None, size: str | None, candidates: str, cost: Cost) -> "Target | None":
    """The target of the mixed-precision options; None without one."""
    from ofqctl.jobs.mixing import Target

    if cost == "latency" and (bits is None or size is not None):
        raise RecipeError("--cost latency: needs --target-bits, which says how long layers may take")
    if bits is None and size is None:
        return None
    if bits is not None and size is not None:
        raise RecipeError("--target-bits and --target-size: only one of them can be given")
    size_bytes = None if size is None else parse_size(size)
    return Target(bits, size_bytes, parse_widths("--candidates", candidates, least=2), cost)


def _render(result: dict[str, Any], model: str, data: str | None, *, chosen: bool) -> Iterator[Any]:
    yield from run_summary(result)
    if result["recipe"] == AT_8_BITS and not chosen:
        yield f"recipe    {AT_8_BITS} makes the fastest files; --recipe {WITH_IMAGES} takes minutes for more accuracy"
    rows = result["ptq"].get("rows")
    if rows:
        yield f"rows      the inputs of {len(rows['chosen'])} of {len(rows['errors'])} layers are quantized row by row"
    mixed = result["mixed_precision"]
    if mixed is not None:
        counts = Counter(mixed["bits"].values())
        spread = ", ".join(f"{counts[bits]} layers at {bits}" for bits in sorted(counts))
        yield f"mixed     {mixed['average_bits']:.3f} bits of weights on average: {spread}"
        spent = mixed["cost"]
        if spent["unit"] == "ms":
            yield f"products  {spent['spent']:.2f} ms of {spent['budget']:.2f} ms, one image, one thread"
    yield from training_hint(result["bits"], model)
    yield from next_commands(Path(result["output"]), data)
