"""``ofqctl bench step`` and ``ofqctl bench infer``."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_counts
from ofqctl.cli.commands import command
from ofqctl.cli.groups import flag, group, option
from ofqctl.cli.output import Table, megabytes

if TYPE_CHECKING:
    from ofqctl.results.bench import BenchInferResult, BenchStepResult, MeasuredFile, Pass, Ratio, Step

    Figure = Callable[[float], str]
    Row = tuple[str, Figure, Callable[[MeasuredFile], float | None], Callable[[Ratio], float | None]]

EXAMPLES = (
    "ofqctl bench step deit_tiny_distilled_patch16_224 --recipe ofq/vit_w2a2",
    "ofqctl bench step vit_tiny --recipe statsq --wbits 4 --abits 4 --batch-size 8 --json",
)

app = typer.Typer(no_args_is_help=True, help="Measure what quantization costs.")


@group("Recipe")
class _Recipe:
    recipe: str = option(
        "NAME|FILE", "Name of a recipe (see `ofqctl recipe ls`), or a YAML file.", default="ofq/vit_w2a2"
    )
    wbits: str | None = option("N", "Bits of the weights, 1-8.")
    abits: str | None = option("N", "Bits of the activations, 1-8.")


@group("Execution")
class _StepExecution:
    device: options.Device = option("auto|cpu|cuda|mps", "Device to compute on.", default="auto")
    batch_size: int = option("N", "Images in one optimizer step.", default=16, min=1)
    amp: Literal["bf16"] | None = option("bf16", "Compute in 16 bits where they suffice; weights stay in 32 bits.")
    steps: int = option("N", "Number of timed optimizer steps of each model.", default=10, min=1)
    no_fused: bool = flag("Do not compile the quantizers' functions.", "--no-fused")


@command(app, "step", *EXAMPLES)
def step(
    model: options.FloatModel,
    *,
    recipe: _Recipe,
    settings: options.RecipeOptions,
    architecture: options.ArchitectureOptions,
    printing: options.PrintOptions,
    execution: _StepExecution,
    seed: options.Seed = 0,
) -> None:
    """Time an optimizer step in float, quantized, with the tracker, and as the recipe takes it, with random weights."""
    from ofqctl.recipe import catalogue

    changes = settings.changes(("weights.bits", recipe.wbits), ("activations.bits", recipe.abits))
    resolved = catalogue.load(recipe.recipe, changes)

    from ofqctl.jobs.bench_step import BenchStepRequest, bench_step

    request = BenchStepRequest(
        model=architecture.request(model),
        recipe=resolved,
        batch_size=execution.batch_size,
        device=execution.device,
        bf16=execution.amp == "bf16",
        steps=execution.steps,
        fused=not execution.no_fused,
        seed=seed,
    )
    with printing.sink() as sink:
        sink.show(bench_step(request, sink.progress), _render)


def _render(result: "BenchStepResult") -> Iterator[Table | str]:
    title = f"{result.model}, batch {result.batch_size}, {result.device}"
    recipe = f">{result.recipe} (W{result.bits.weights}A{result.bits.activations})"
    headings = ["one training step", ">float", recipe, ">ratio", ">with tracker", ">ratio "]
    table = Table([*headings, *([] if result.whole is None else [">as in training", ">ratio to float"])], title=title)
    rows: tuple[tuple[str, Callable[[Step], float], Figure], ...] = (
        ("seconds, median", lambda step: step.seconds_median, _seconds),
        ("seconds, least", lambda step: step.seconds_min, _seconds),
        ("peak memory above the model", lambda step: step.peak_bytes, megabytes),
    )
    for heading, value, show in rows:
        original, ours, tracked = (show(value(step)) for step in (result.float, result.quantized, result.tracked))
        of_tracker = f"{value(result.tracker.ratio):.3f}x"
        cells = [original, ours, f"{value(result.ratio):.2f}x", tracked, of_tracker]
        if result.whole is not None and result.whole_ratio is not None:
            cells += [show(value(result.whole)), f"{value(result.whole_ratio):.2f}x"]
        table.add(heading, *cells)
    yield table
    yield ""
    tracker = result.tracker
    yield f"the tracker takes {tracker.bytes_per_weight:.2f} bytes for each of {tracker.weights} weights"


def _seconds(value: float) -> str:
    return f"{value:.4f}"


INFER_EXAMPLES = (
    "ofqctl bench infer runs/deit_small_patch16_224-w2a2/model.onnx --against float",
    "ofqctl bench infer runs/vit-w8a8 --against float --against ort-dynamic --data imagenet/val",
    "ofqctl bench infer runs/vit-w8a8 --against float --against nncf --runtime openvino --batch-size 1,8",
    "ofqctl bench infer a.onnx --against b.onnx --threads 4 --profile --json",
)


@group("Comparison")
class _Comparison:
    against: list[str] | None = option(
        "FILE|RUN|float|PEER",
        "Another file or run; `float`, the float model of the same architecture; or what another program "
        "makes of it: `ort-dynamic`, `ort-static` (percentiles), `nncf` (transformer preset). May be repeated.",
    )
    calib_data: str | None = option(
        "DATA", "Calibration images for `ort-static` and `nncf`, 128 of them; by default synthetic images."
    )


@group("Execution")
class _InferExecution:
    runtime: Literal["onnxruntime", "openvino"] = option(
        "onnxruntime|openvino", "What runs the files.", default="onnxruntime"
    )
    threads: int = option("N", "Number of threads of the runtime.", default=1, min=1)
    batch_size: str = option("N,N", "Images in one pass, or several numbers.", default="1")
    runs: int = option("N", "Timed passes.", default=30, min=1)
    profile: bool = flag("Also show the time by kind of operator.", "--profile")


@command(app, "infer", *INFER_EXAMPLES)
def infer(
    model: Annotated[
        Path,
        typer.Argument(metavar="FILE|RUN", help="ONNX file, or a run directory.", show_default=False),
    ],
    *,
    comparison: _Comparison,
    execution: _InferExecution,
    data: options.Data = None,
    reading: options.DataOptions,
    printing: options.PrintOptions,
) -> None:
    """Compare latency, load time, memory, size and accuracy of files on the CPU, in turns in one process."""
    from ofqctl.jobs.bench_infer import BenchInferRequest, bench_infer

    request = BenchInferRequest(
        model,
        tuple(comparison.against or ()),
        execution.runtime,
        execution.threads,
        parse_counts("--batch-size", execution.batch_size),
        execution.runs,
        reading.labelled(data) if data else None,
        reading.images(comparison.calib_data, None) if comparison.calib_data else None,
        execution.profile,
    )
    with printing.sink() as sink:
        sink.show(bench_infer(request, sink.progress), _render_infer)


def _render_infer(result: "BenchInferResult") -> Iterator[Table | str]:
    names = list(result.files)
    title = f"{result.runtime}, {result.threads} threads; in brackets how many times as much as the first"
    table = Table(["one pass", *(f">{result.files[name].file}" for name in names)], title=title)
    for heading, show, value, times in _rows(result):
        cells = [
            _cell(show, value(result.files[name]), times(result.ratio[name]) if name in result.ratio else None)
            for name in names
        ]
        if any(cells):
            table.add(heading, *cells)
    yield table


def _rows(result: "BenchInferResult") -> "Iterator[Row]":
    """Heading, format, figure of a file, and ratio of a file to the first."""
    for size in map(str, result.batch_sizes):
        for heading, of in (
            ("CPU milliseconds", lambda one: one.cpu_seconds_median),
            ("milliseconds", lambda one: one.seconds_median),
        ):
            figure = partial(_of_batch, size, of)
            yield f"{heading}, batch {size}", _milliseconds, figure, figure
    yield "milliseconds to load", _milliseconds, lambda f: f.load_seconds_median, lambda r: r.load_seconds_median
    yield "peak memory", megabytes, lambda f: f.peak_bytes, lambda r: r.peak_bytes
    yield "file", megabytes, lambda f: f.file_bytes, lambda r: r.file_bytes
    yield "CPU seconds to make", lambda seconds: f"{seconds:.1f}", lambda f: f.make_cpu_seconds, lambda _: None
    yield "top-1 accuracy", lambda top1: f"{top1:.2f} %", lambda f: f.top1, lambda _: None
    for kind in next(iter(result.files.values())).kinds or {}:
        yield f"  {kind}", _milliseconds, partial(_of_kind, kind), lambda _: None


def _of_batch(size: str, of: "Callable[[Pass], float]", found: "MeasuredFile | Ratio") -> float:
    return of(found.batches[size])


def _of_kind(kind: str, file: "MeasuredFile") -> float | None:
    return (file.kinds or {}).get(kind)


def _cell(show: Callable[[float], str], value: float | None, times: float | None) -> str:
    if value is None:
        return ""
    return show(value) if times is None else f"{show(value)} ({times:.2f}x)"


def _milliseconds(value: float) -> str:
    return f"{1000 * value:.2f}"
