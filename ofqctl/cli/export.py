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
    "ofqctl export runs/vit-w8a8 --onnx --style qdq --batch 1 --with-preprocess --output vit.onnx",
    "ofqctl export deit_small --onnx --output float.onnx",
    "ofqctl export runs/deit_small_patch16_224-w2a2 --safetensors --output deit_small.safetensors",
)

_WHAT, _CHECK = "What to write", "Verification"


def export(
    model: options.AnyModel,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write a verified ONNX file.", rich_help_panel=_WHAT)] = False,
    safetensors: Annotated[
        bool,
        typer.Option("--safetensors", help="Write the packed weights and their description.", rich_help_panel=_WHAT),
    ] = False,
    style: Annotated[
        Literal["integer", "standard", "qdq"],
        typer.Option(
            help="`integer` computes products on codes, with operators of ONNX Runtime; `standard` does so "
            "with standard operators alone; `qdq` has float products with QuantizeLinear/DequantizeLinear.",
            metavar="integer|standard|qdq",
            rich_help_panel=_WHAT,
        ),
    ] = "integer",
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
        style=style,
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
    )
    with Sink(as_json=as_json) as sink:
        sink.show(export_onnx(request, sink.progress), _render)


def _export_safetensors(run: Path, layout: str, output: Path | None, *, overwrite: bool, as_json: bool) -> None:
    from ofqctl.jobs.export_safetensors import SafetensorsRequest, export_safetensors

    request = SafetensorsRequest(run, layout, output, overwrite)  # type: ignore[arg-type]
    with Sink(as_json=as_json) as sink:
        sink.show(export_safetensors(request, sink.progress), _render_safetensors)


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
        table = Table(["product by product", ">"], title=f"{result['output']}, {result['style']}")
        table.add("products compared", exact["products"])
        table.add("largest difference of a product, relative to its largest value", f"{exact['worst']:.1e}")
        table.add("codes compared", exact["codes"])
        table.add("codes that differ", exact["different"])
        table.add("largest difference between the products", f"{exact['between']:.1e}")
        yield table
        yield ""
    table = Table(["end to end", ">this file", ">noise floor"], title="" if exact["products"] else result["output"])
    agreement, difference = ends["agreement"], ends["difference"]
    table.add("top-1 as torch", f"{agreement['graph']:.1f} %", f"{agreement['floor']:.1f} %")
    table.add("median difference of logits", f"{difference['graph']:.1e}", f"{difference['floor']:.1e}")
    if ends["top1"]:
        table.add("top-1 accuracy", f"{ends['top1']['graph']:.2f} %", f"torch {ends['top1']['torch']:.2f} %")
    yield table
    yield ""
    yield f"verified  on {ends['images']} images of {result['verification']['data']}"
    yield f"products  {products['integer']} on integers, {products['float']} in float"
    yield from (f"          {count} x {reason}" for reason, count in products["reasons"].items())
    if result["run"]:
        run = result["run"]
        yield (
            f"size      {megabytes(result['bytes'])}; ideal {megabytes(run['ideal'])}, "
            f"float weights {megabytes(run['float_model'])}"
        )
    else:
        yield f"size      {megabytes(result['bytes'])}"
    yield f"written   to {result['output']}, opset {result['opset']}"


def _render_safetensors(result: dict[str, Any]) -> Iterator[str]:
    yield f"size      {megabytes(result['bytes'])}"
    yield f"written   to {result['output']}, layout {result['layout']}"
