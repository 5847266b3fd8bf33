"""``ofqctl export``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ofqctl.cli import options
from ofqctl.cli.groups import flag, group, option
from ofqctl.cli.output import Table, megabytes
from ofqctl.errors import ArtifactError

if TYPE_CHECKING:
    from ofqctl.results.export import AboutRuntime, ExportOnnxResult, ExportSafetensorsResult, ExportWebResult

EXAMPLES = (
    "ofqctl export runs/deit_small_patch16_224-w2a2 --onnx --verify-data imagenet/val",
    "ofqctl export runs/vit-w8a8 --onnx --target portable --batch 1 --with-preprocess --output vit.onnx",
    "ofqctl export deit_small --onnx --output float.onnx",
    "ofqctl export runs/deit_small_patch16_224-w2a2 --safetensors --output deit_small.safetensors",
    "ofqctl export runs/deit_small_patch16_224-w2a2 --web site --ort-web node_modules/onnxruntime-web",
)

Target = Literal["onnxruntime", "openvino", "portable"]
_FORMER: dict[str, Target] = {"integer": "onnxruntime", "qdq": "portable"}


@group("What to write")
class _What:
    onnx: bool = flag("Write a verified ONNX file.", "--onnx")
    safetensors: bool = flag("Write the packed weights and their description.", "--safetensors")
    web: Path | None = option("DIR", "Write a page that runs the model in a browser, with all that it needs.")
    ort_web: Path | None = option(
        "PATH",
        "The npm package onnxruntime-web, which is copied beside the page of --web, so that it needs no network; by "
        "default the page loads it from cdn.jsdelivr.net.",
    )
    target: Target | None = option(
        "onnxruntime|openvino|portable",
        "What runs the file: `onnxruntime` (default) has its operators; `portable` has those of the standard "
        "alone, which compilers recognize; `openvino` is verified there, and may be its IR (--output FILE.xml).",
    )
    style: Literal["integer", "qdq"] | None = option(
        "integer|qdq", "Former names: `integer` is --target onnxruntime, `qdq` is --target portable."
    )
    layout: Literal["ofqctl", "compressed-tensors"] = option(
        "ofqctl|compressed-tensors",
        "Layout of --safetensors: one self-describing file, or a folder for other programs.",
        default="ofqctl",
    )
    batch: str = option(
        "dynamic|N", "Batch size of the file: `dynamic` for any number of images, or exactly N.", default="dynamic"
    )
    tokens: bool = flag("Give patch tokens beside the embedding of a model without a classifier.", "--tokens")
    with_preprocess: bool = flag(
        "Make the file take pixels, uint8 (B, 3, H, W) RGB, and normalize them itself.", "--with-preprocess"
    )


@group("Verification")
class _Check:
    verify_data: str | None = option("DATA", "Images to verify the file on; by default synthetic images.")
    verify_images: int = option("N", "Number of images for the end-to-end comparison.", default=64, min=1)
    strict: bool = flag("Fail if a runtime computes a layer in float.", "--strict")


@group("Output")
class _Output:
    output: Path | None = option(
        "FILE", "File to write; by default in the run directory, or in the folder NAME for hf-hub:ORG/NAME."
    )
    overwrite: bool = flag("Replace existing output.", "--overwrite")


def export(
    model: options.AnyModel,
    *,
    what: _What,
    check: _Check,
    reading: options.DataOptions,
    weights: options.ModelOptions,
    output: _Output,
    printing: options.PrintOptions,
    workers: options.Workers = 0,
) -> None:
    """Write a run as an ONNX file that is verified against torch, a page for browsers, or packed safetensors."""
    _check_one(model, what)
    if what.safetensors:
        _export_safetensors(model, what.layout, output, printing)
        return

    from ofqctl.jobs.export import ExportRequest, export_onnx

    request = ExportRequest(
        model=weights.request(model),
        target=_target(what.target, what.style),
        output=output.output,
        batch=_batch(what.batch),
        pixels=what.with_preprocess,
        data=None if check.verify_data is None else reading.labelled(check.verify_data),
        images=check.verify_images,
        overwrite=output.overwrite,
        workers=workers,
        strict=check.strict,
        tokens=what.tokens,
    )
    with printing.sink() as sink:
        if what.web is None:
            sink.show(export_onnx(request, sink.progress), _render)
        else:
            _check_for_page(what, output)
            from ofqctl.jobs.export_web import WebRequest, export_web

            sink.show(export_web(WebRequest(request, what.web, what.ort_web), sink.progress), _render_page)


def _check_one(model: str, what: _What) -> None:
    """Check that one kind of output is asked for."""
    kinds = {"--onnx": what.onnx, "--safetensors": what.safetensors, "--web": what.web is not None}
    asked = [name for name, wanted in kinds.items() if wanted]
    if len(asked) != 1:
        seen = " and ".join(asked) or "none"
        raise ArtifactError(
            f"export: {seen} of {', '.join(kinds)}; exactly one of them is needed", hint=f"ofqctl export {model} --onnx"
        )
    if what.ort_web is not None and what.web is None:
        raise ArtifactError("export: --ort-web is for the page of --web", hint=f"ofqctl export {model} --web DIR")


def _check_for_page(what: _What, output: _Output) -> None:
    """Check that no option is given that a page decides itself."""
    given = {
        "--output": output.output is not None,
        "--batch": what.batch != "dynamic",
        "--with-preprocess": what.with_preprocess,
        "--target openvino": what.target == "openvino",
    }
    for name in (name for name, present in given.items() if present):
        raise ArtifactError(
            f"export: {name} does not go with --web, which writes a folder with a model for one prepared picture",
            hint="leave it out; --target onnxruntime and portable run in browsers",
        )


def _export_safetensors(run: str, layout: str, output: _Output, printing: options.PrintOptions) -> None:
    from ofqctl.jobs.export_safetensors import SafetensorsRequest, export_safetensors

    request = SafetensorsRequest(run, layout, output.output, output.overwrite)  # type: ignore[arg-type]
    with printing.sink() as sink:
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


def _render(result: "ExportOnnxResult") -> Iterator[Table | str]:
    exact, ends, products = result.verification.exactness, result.verification.end_to_end, result.products
    if exact.products:
        table = Table(["product by product", ">"], title=f"{result.output}, for {result.target}")
        table.add("products compared", exact.products)
        table.add("largest difference of a product, relative to its largest value", f"{exact.worst:.1e}")
        table.add("codes compared", exact.codes)
        table.add("codes that differ", exact.different)
        table.add("largest difference between the products", f"{exact.between:.1e}")
        yield table
        yield ""
    others = [name for name in ends.difference if name not in ("graph", "floor")]
    names = ["graph", *others, "floor"]
    columns = [">this file", *(f">in {name}" for name in others), ">noise floor"]
    table = Table(["end to end", *columns], title="" if exact.products else result.output)
    if ends.agreement:
        table.add("top-1 as torch", *(f"{ends.agreement[name]:.1f} %" for name in names))
    else:
        table.add("lowest cosine with torch", *(f"{ends.cosine[name]:.6f}" for name in names))
    outputs = " and ".join(result.outputs)
    table.add(f"median difference of {outputs}", *(f"{ends.difference[name]:.1e}" for name in names))
    if top1 := ends.top1:
        table.add("top-1 accuracy", *(f"{top1[name]:.2f} %" for name in names[:-1]), f"torch {top1['torch']:.2f} %")
    yield table
    yield ""
    yield f"verified  on {ends.images} images of {result.verification.data}"
    yield f"products  {products.integer} on integers, {products.float} in float"
    yield from (f"          {count} x {reason}" for reason, count in products.reasons.items())
    if result.target:
        yield from (_kernels(name, about) for name, about in result.runtimes.items())
    size = megabytes(result.bytes)
    if run := result.run:
        size += f"; ideal {megabytes(run.ideal)}, float weights {megabytes(run.float_model)}"
    yield f"size      {size}"
    yield f"written   to {result.output}, opset {result.opset}"


def _render_page(result: "ExportWebResult") -> Iterator[Table | str]:
    yield from _render(result)
    page = result.page
    beside = "beside the page" if page.offline else "from the network (--ort-web PATH puts it beside the page)"
    yield f"page      {page.folder}, {len(page.files)} files, {megabytes(page.bytes)}"
    yield f"runtime   onnxruntime-web {page.runtime}, {beside}"
    yield f"look      python -m http.server --directory {page.folder}, then http://localhost:8000"


def _kernels(runtime: str, about: "AboutRuntime") -> str:
    """One line about what a runtime makes of the products."""
    counted = [f"{count} x {kernel}" for kernel, count in about.kernels.items()]
    counted += [f"{len(about.float)} in float"] if about.float else []
    oldest = f", {about.oldest} and newer load it" if about.oldest else ""
    return f"runs in   {runtime} {about.version}: {', '.join(counted)}{oldest}"


def _render_safetensors(result: "ExportSafetensorsResult") -> Iterator[str]:
    yield f"size      {megabytes(result.bytes)}"
    yield f"written   to {result.output}, layout {result.layout}"
