"""``ofqctl export``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.output import Sink, Table, megabytes
from ofqctl.errors import ArtifactError

EXAMPLES = (
    "ofqctl export runs/deit_small_patch16_224-w2a2 --onnx --verify-data imagenet/val",
    "ofqctl export runs/vit-w8a8 --onnx --target portable --batch 1 --with-preprocess --output vit.onnx",
    "ofqctl export deit_small --onnx --output float.onnx",
    "ofqctl export runs/deit_small_patch16_224-w2a2 --safetensors --output deit_small.safetensors",
)

Target = Literal["onnxruntime", "openvino", "portable"]
_FORMER: dict[str, Target] = {"integer": "onnxruntime", "qdq": "portable"}
_WHAT, _CHECK = "What to write", "Verification"


def export(
    model: options.AnyModel,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write a verified ONNX file.", rich_help_panel=_WHAT)] = False,
    safetensors: Annotated[
        bool,
        typer.Option("--safetensors", help="Write the packed weights and their description.", rich_help_panel=_WHAT),
    ] = False,
    target: Annotated[
        Target | None,
        typer.Option(
            help="What runs the file: `onnxruntime` (default) has its operators; `portable` has those of the standard "
            "alone, which compilers recognize; `openvino` is verified there, and may be its IR (--output FILE.xml).",
            metavar="onnxruntime|openvino|portable",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    style: Annotated[
        Literal["integer", "qdq"] | None,
        typer.Option(
            help="Former names: `integer` is --target onnxruntime, `qdq` is --target portable.",
            metavar="integer|qdq",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    layout: Annotated[
        Literal["ofqctl", "compressed-tensors"],
        typer.Option(
            help="Layout of --safetensors: one self-describing file, or a folder for other programs.",
            metavar="ofqctl|compressed-tensors",
            rich_help_panel=_WHAT,
        ),
    ] = "ofqctl",
    batch: Annotated[
        str,
        typer.Option(
            help="Batch size of the file: `dynamic` for any number of images, or exactly N.",
            metavar="dynamic|N",
            rich_help_panel=_WHAT,
        ),
    ] = "dynamic",
    with_preprocess: Annotated[
        bool,
        typer.Option(
            "--with-preprocess",
            help="Make the file take pixels, uint8 (B, 3, H, W) RGB, and normalize them itself.",
            rich_help_panel=_WHAT,
        ),
    ] = False,
    verify_data: Annotated[
        str | None,
        typer.Option(
            help="Images to verify the file on; by default synthetic images.", metavar="DATA", rich_help_panel=_CHECK
        ),
    ] = None,
    verify_images: Annotated[
        int,
        typer.Option(
            help="Number of images for the end-to-end comparison.", metavar="N", min=1, rich_help_panel=_CHECK
        ),
    ] = 64,
    split: options.Split = None,
    class_map: options.ClassMap = None,
    checkpoint: options.Checkpoint = None,
    no_pretrained: options.NoPretrained = False,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write; by default in the run directory.", metavar="FILE", rich_help_panel="Output"),
    ] = None,
    overwrite: options.Overwrite = False,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail if a runtime computes a layer in float.", rich_help_panel=_CHECK),
    ] = False,
    as_json: options.Json = False,
    workers: options.Workers = 0,
) -> None:
    """Write a run as an ONNX file that is verified against torch, or as packed safetensors."""
    if onnx == safetensors:
        raise ArtifactError(
            f"export: {'both' if onnx else 'neither'} of --onnx and --safetensors; exactly one of them is needed",
            hint=f"ofqctl export {model} --onnx",
        )
    if safetensors:
        _export_safetensors(Path(model), layout, output, overwrite=overwrite, as_json=as_json)
        return

    from ofqctl.jobs.export import ExportRequest, export_onnx

    request = ExportRequest(
        model=options.model_request(
            model,
            checkpoint=checkpoint,
            no_pretrained=no_pretrained,
            num_classes=num_classes,
            img_size=img_size,
            model_kwargs=model_kwargs,
        ),
        target=_target(target, style),
        output=output,
        batch=_batch(batch),
        pixels=with_preprocess,
        data=None
        if verify_data is None
        else options.data_spec(
            verify_data, split=split, image_column=None, label_column=None, class_map=class_map, streaming=False
        ),
        images=verify_images,
        overwrite=overwrite,
        workers=workers,
        strict=strict,
    )
    with Sink(as_json=as_json) as sink:
        sink.show(export_onnx(request, sink.progress), _render)


def _export_safetensors(run: Path, layout: str, output: Path | None, *, overwrite: bool, as_json: bool) -> None:
    from ofqctl.jobs.export_safetensors import SafetensorsRequest, export_safetensors

    request = SafetensorsRequest(run, layout, output, overwrite)  # type: ignore[arg-type]
    with Sink(as_json=as_json) as sink:
        sink.show(export_safetensors(request, sink.progress), _render_safetensors)


def _target(target: Target | None, style: Literal["integer", "qdq"] | None) -> Target:
    former: Target | None = None if style is None else _FORMER[style]
    if target and former and target != former:
        raise ArtifactError(f"export: --style {style} is --target {former}, not {target}", hint="leave --style out")
    return target or former or "onnxruntime"


def _batch(text: str) -> int | None:
    if text == "dynamic":
        return None
    if not text.isdigit() or int(text) < 1:
        raise ArtifactError(f"--batch {text}: allowed are `dynamic` and numbers >= 1")
    return int(text)


def _render(result: dict[str, Any]) -> Iterator[Table | str]:
    exact, ends = result["verification"]["exactness"], result["verification"]["end_to_end"]
    products = result["products"]
    if exact["products"]:
        table = Table(["product by product", ">"], title=f"{result['output']}, for {result['target']}")
        table.add("products compared", exact["products"])
        table.add("largest difference of a product, relative to its largest value", f"{exact['worst']:.1e}")
        table.add("codes compared", exact["codes"])
        table.add("codes that differ", exact["different"])
        table.add("largest difference between the products", f"{exact['between']:.1e}")
        yield table
        yield ""
    agreement, difference, top1 = ends["agreement"], ends["difference"], ends["top1"]
    others = [name for name in agreement if name not in ("graph", "floor")]
    names = ["graph", *others, "floor"]
    columns = [">this file", *(f">in {name}" for name in others), ">noise floor"]
    table = Table(["end to end", *columns], title="" if exact["products"] else result["output"])
    table.add("top-1 as torch", *(f"{agreement[name]:.1f} %" for name in names))
    table.add("median difference of logits", *(f"{difference[name]:.1e}" for name in names))
    if top1:
        table.add("top-1 accuracy", *(f"{top1[name]:.2f} %" for name in names[:-1]), f"torch {top1['torch']:.2f} %")
    yield table
    yield ""
    yield f"verified  on {ends['images']} images of {result['verification']['data']}"
    yield f"products  {products['integer']} on integers, {products['float']} in float"
    yield from (f"          {count} x {reason}" for reason, count in products["reasons"].items())
    if result["target"]:
        yield from (_kernels(name, about) for name, about in result["runtimes"].items())
    if result["run"]:
        run = result["run"]
        yield (
            f"size      {megabytes(result['bytes'])}; ideal {megabytes(run['ideal'])}, "
            f"float weights {megabytes(run['float_model'])}"
        )
    else:
        yield f"size      {megabytes(result['bytes'])}"
    yield f"written   to {result['output']}, opset {result['opset']}"


def _kernels(runtime: str, about: dict[str, Any]) -> str:
    """One line about what a runtime makes of the products."""
    counted = [f"{count} x {kernel}" for kernel, count in about["kernels"].items()]
    counted += [f"{len(about['float'])} in float"] if about["float"] else []
    oldest = f", {about['oldest']} and newer load it" if "oldest" in about else ""
    return f"runs in   {runtime} {about['version']}: {', '.join(counted)}{oldest}"


def _render_safetensors(result: dict[str, Any]) -> Iterator[str]:
    yield f"size      {megabytes(result['bytes'])}"
    yield f"written   to {result['output']}, layout {result['layout']}"
