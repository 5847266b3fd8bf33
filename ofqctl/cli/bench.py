"""``ofqctl bench step`` and ``ofqctl bench infer``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_counts
from ofqctl.cli.examples import examples
from ofqctl.cli.output import Sink, Table, megabytes

EXAMPLES = (
    "ofqctl bench step deit_tiny_distilled_patch16_224 --recipe ofq/vit_w2a2",
    "ofqctl bench step vit_tiny --recipe statsq --wbits 4 --abits 4 --batch-size 8 --json",
)

app = typer.Typer(no_args_is_help=True, help="Measure what quantization costs.")


@app.command("step", epilog=examples(*EXAMPLES))
def step(
    model: options.FloatModel,
    recipe: Annotated[
        str,
        typer.Option(
            help="Name of a recipe (see `ofqctl recipe ls`), or a YAML file.",
            metavar="NAME|FILE",
            rich_help_panel="Recipe",
        ),
    ] = "ofq/vit_w2a2",
    wbits: Annotated[
        str | None, typer.Option(help="Bits of the weights, 1-8.", metavar="N", rich_help_panel="Recipe")
    ] = None,
    abits: Annotated[
        str | None, typer.Option(help="Bits of the activations, 1-8.", metavar="N", rich_help_panel="Recipe")
    ] = None,
    assignments: options.Assignments = None,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    as_json: options.Json = False,
    device: options.Device = "auto",
    batch_size: Annotated[
        int, typer.Option(help="Images in one optimizer step.", metavar="N", min=1, rich_help_panel="Execution")
    ] = 16,
    amp: Annotated[
        Literal["bf16"] | None,
        typer.Option(help="Autocast of the forward pass.", metavar="bf16", rich_help_panel="Execution"),
    ] = None,
    steps: Annotated[
        int,
        typer.Option(
            help="Number of timed optimizer steps of each model.", metavar="N", min=1, rich_help_panel="Execution"
        ),
    ] = 10,
    no_fused: Annotated[
        bool,
        typer.Option("--no-fused", help="Do not compile the quantizers' functions.", rich_help_panel="Execution"),
    ] = False,
    seed: options.Seed = 0,
) -> None:
    """Time an optimizer step in float, quantized, and quantized with the tracker, with random weights."""
    from ofqctl.recipe import catalogue

    shorthand = (("weights.bits", wbits), ("activations.bits", abits))
    changes = [f"{path}={value}" for path, value in shorthand if value is not None]
    resolved = catalogue.load(recipe, [*changes, *(assignments or [])])

    from ofqctl.jobs.bench_step import BenchStepRequest, bench_step

    request = BenchStepRequest(
        model=options.model_request(
            model,
            checkpoint=None,
            no_pretrained=True,
            num_classes=num_classes,
            img_size=img_size,
            model_kwargs=model_kwargs,
        ),
        recipe=resolved,
        batch_size=batch_size,
        device=device,
        bf16=amp == "bf16",
        steps=steps,
        fused=not no_fused,
        seed=seed,
    )
    with Sink(as_json=as_json) as sink:
        sink.show(bench_step(request, sink.progress), _render)


def _render(result: dict[str, Any]) -> Iterator[Table | str]:
    bits = f"W{result['bits']['weights']}A{result['bits']['activations']}"
    title = f"{result['model']}, batch {result['batch_size']}, {result['device']}"
    recipe = f">{result['recipe']} ({bits})"
    table = Table(["one training step", ">float", recipe, ">ratio", ">with tracker", ">ratio "], title=title)
    for heading, key, show in (
        ("seconds, median", "seconds_median", _seconds),
        ("seconds, least", "seconds_min", _seconds),
        ("peak memory above the model", "peak_bytes", megabytes),
    ):
        float_, ours, tracked = (show(result[name][key]) for name in ("float", "quantized", "tracked"))
        ratio, of_tracker = result["ratio"][key], result["tracker"]["ratio"][key]
        table.add(heading, float_, ours, f"{ratio:.2f}x", tracked, f"{of_tracker:.3f}x")
    yield table
    tracker = result["tracker"]
    yield ""
    yield f"the tracker takes {tracker['bytes_per_weight']:.2f} bytes for each of {tracker['weights']} weights"


def _seconds(value: float) -> str:
    return f"{value:.4f}"


INFER_EXAMPLES = (
    "ofqctl bench infer runs/deit_small_patch16_224-w2a2/model.onnx --against float",
    "ofqctl bench infer runs/vit-w8a8 --against float --against ort-dynamic --data imagenet/val",
    "ofqctl bench infer runs/vit-w8a8 --against float --against nncf --runtime openvino --batch-size 1,8",
    "ofqctl bench infer a.onnx --against b.onnx --threads 4 --profile --json",
)


@app.command("infer", epilog=examples(*INFER_EXAMPLES))
def infer(
    model: Annotated[
        Path,
        typer.Argument(metavar="FILE|RUN", help="ONNX file, or a run directory.", show_default=False),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="Another file or run; `float`, the float model of the same architecture; or what another program "
            "makes of it: `ort-dynamic`, `ort-static` (percentiles), `nncf` (transformer preset). May be repeated.",
            metavar="FILE|RUN|float|PEER",
            rich_help_panel="Comparison",
        ),
    ] = None,
    runtime: Annotated[
        Literal["onnxruntime", "openvino"],
        typer.Option(help="What runs the files.", metavar="onnxruntime|openvino", rich_help_panel="Execution"),
    ] = "onnxruntime",
    threads: Annotated[
        int, typer.Option(help="Number of threads of the runtime.", metavar="N", min=1, rich_help_panel="Execution")
    ] = 1,
    batch_size: Annotated[
        str,
        typer.Option(help="Images in one pass, or several numbers.", metavar="N,N", rich_help_panel="Execution"),
    ] = "1",
    runs: Annotated[int, typer.Option(help="Timed passes.", metavar="N", min=1, rich_help_panel="Execution")] = 30,
    profile: Annotated[
        bool,
        typer.Option("--profile", help="Also show the time by kind of operator.", rich_help_panel="Execution"),
    ] = False,
    data: options.Data = None,
    split: options.Split = None,
    class_map: options.ClassMap = None,
    calib_data: Annotated[
        str | None,
        typer.Option(
            help="Calibration images for `ort-static` and `nncf`, 128 of them; by default synthetic images.",
            metavar="DATA",
            rich_help_panel="Comparison",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Compare latency, load time, memory, size and accuracy of files on the CPU, in turns in one process."""
    from ofqctl.data import DataSpec
    from ofqctl.jobs.bench_infer import BenchInferRequest, bench_infer

    columns: dict[str, Any] = {"image_column": None, "label_column": None, "class_map": class_map, "streaming": False}
    request = BenchInferRequest(
        model,
        tuple(against or ()),
        runtime,
        threads,
        parse_counts("--batch-size", batch_size),
        runs,
        None if data is None else options.data_spec(data, split=split, **columns),
        None if calib_data is None else DataSpec(calib_data),
        profile,
    )
    with Sink(as_json=as_json) as sink:
        sink.show(bench_infer(request, sink.progress), _render_infer)


def _render_infer(result: dict[str, Any]) -> Iterator[Table | str]:
    files, ratio = result["files"], result["ratio"]
    names = list(files)
    title = f"{result['runtime']}, {result['threads']} threads; in brackets how many times as much as the first"
    table = Table(["one pass", *(f">{files[name]['file']}" for name in names)], title=title)

    def row(heading: str, show: Any, value: Any, times: Any) -> None:
        cells = [_cell(show, value(files[name]), times(ratio[name]) if name in ratio else None) for name in names]
        if any(cells):
            table.add(heading, *cells)

    for size in map(str, result["batch_sizes"]):
        for heading, key in (("CPU milliseconds", "cpu_seconds_median"), ("milliseconds", "seconds_median")):
            path = (size, key)
            row(
                f"{heading}, batch {size}",
                _milliseconds,
                lambda f, p=path: f["batches"][p[0]][p[1]],
                lambda r, p=path: r["batches"][p[0]][p[1]],
            )
    for heading, key, show in (
        ("milliseconds to load", "load_seconds_median", _milliseconds),
        ("peak memory", "peak_bytes", megabytes),
        ("file", "file_bytes", megabytes),
        ("CPU seconds to make", "make_cpu_seconds", lambda seconds: f"{seconds:.1f}"),
        ("top-1 accuracy", "top1", lambda top1: f"{top1:.2f} %"),
    ):
        row(heading, show, lambda f, k=key: f.get(k), lambda r, k=key: r.get(k))
    for kind in files[names[0]].get("kinds", {}):
        row(f"  {kind}", _milliseconds, lambda f, k=kind: f["kinds"][k], lambda _r: None)
    yield table


def _cell(show: Any, value: Any, times: float | None) -> str:
    if value is None:
        return ""
    return show(value) if times is None else f"{show(value)} ({times:.2f}x)"


def _milliseconds(value: float) -> str:
    return f"{1000 * value:.2f}"
