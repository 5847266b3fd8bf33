"""``ofqctl inspect``."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofqctl.cli import options
from ofqctl.cli.output import Table, megabytes
from ofqctl.cli.summary import left_float_lines

if TYPE_CHECKING:
    from ofqctl.results.inspect import (
        InspectedGrid,
        InspectedModule,
        InspectedQuantizer,
        InspectedRole,
        InspectRunResult,
    )
    from ofqctl.results.onnx import InspectOnnxResult
    from ofqctl.results.size import LedgerWithRatio

EXAMPLES = (
    "ofqctl inspect runs/deit_small_patch16_224-w4a4",
    "ofqctl inspect runs/deit_small_patch16_224-w4a4/model.safetensors --json",
    "ofqctl inspect runs/deit_small_patch16_224-w4a4/model.onnx",
)
_POINTS = 16  # largest number of points of a table that are all shown


def inspect(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|FILE",
            help="Run directory, the model.safetensors in one, hf-hub:ORG/NAME, or an ONNX file.",
            show_default=False,
        ),
    ],
    *,
    accept_config: Annotated[
        bool,
        typer.Option(
            "--accept-config", help="Accept a config.json (or an ONNX file) that was changed by hand, as it is now."
        ),
    ] = False,
    printing: options.PrintOptions,
) -> None:
    """Show bits, grid and bytes of every module, and what the bytes are used for; for ONNX files also the kernels."""
    from ofqctl.jobs.inspect import InspectRequest
    from ofqctl.jobs.inspect import inspect as look

    with printing.sink() as sink:
        sink.show(look(InspectRequest(run, accept_config), sink.progress), render)


def render(result: "InspectRunResult | InspectOnnxResult") -> Iterator[Table | str]:
    """The tables and lines of a result."""
    from ofqctl.results.onnx import InspectOnnxResult

    return render_onnx(result) if isinstance(result, InspectOnnxResult) else render_run(result)


def render_onnx(result: "InspectOnnxResult") -> Iterator[Table | str]:
    """Those of an ONNX file."""
    if result.products:
        yield _products(result)
        yield ""
    table = Table(["what the bytes are used for", ">bytes", ">"])
    sizes = result.bytes
    for count, words in (
        (sizes.codes, "codes of weights"),
        (sizes.constants, "grid steps, shifts, biases and all other constants"),
        (sizes.graph, "the graph and its metadata"),
        (sizes.total, "the file"),
    ):
        table.add(words, count, megabytes(count))
    yield table
    yield ""
    for name, ports in (("input", result.inputs), ("output", result.outputs)):
        yield from (f"{name:<9} {port.name} {list(port.shape)} {port.type}" for port in ports)
    said = result.description
    if said:
        yield f"model     {said.architecture}, {_gives(said.num_classes)}, {said.input} images"
        yield f"recipe    {said.recipe or 'none: a float model'}"
    yield f"opset     {result.opset}"
    yield f"operators {_counted(result.operators)}"
    yield f"run as    {_counted(result.run_operators)} ({result.runtime})"
    exact = result.verification.exactness
    if exact is not None and exact.worst is not None:
        yield f"verified  {exact.products} products, largest difference {exact.worst:.1e} of the largest value"


def _products(result: "InspectOnnxResult") -> Table:
    table = Table(["product", "-kind", ">weight bits", ">activation bits", "kernel", "->bytes", "in float because"])
    for name, product in result.products.items():
        weight = result.weights.get(f"{name.partition('@')[0]}.weight")
        bits = "x".join(str(width) for width in product.activations)
        size = "" if weight is None else weight.bytes
        table.add(name, product.kind, product.weights or "", bits, product.kernel, size, product.float or "")
    return table


def _counted(operators: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in operators.items())


def render_run(result: "InspectRunResult") -> Iterator[Table | str]:
    """Those of a run."""
    yield _roles(result.roles)
    yield ""
    yield _sizes(result.size)
    yield ""
    yield f"model     {result.model}, {_gives(result.num_classes)}, input {list(result.input_size)}"
    yield f"source    {result.source}"
    yield f"recipe    {result.recipe}"
    yield f"format    version {result.format_version}, written by {result.written_by}"
    yield from _measured(result.results.get("evaluation") or {})
    yield from left_float_lines(result.left_float)
    yield ""
    yield _modules(result.modules)


def _roles(roles: "Mapping[str, InspectedRole]") -> Table:
    table = Table(["role", ">modules", ">weight bits", ">activation bits", ">weights", ">bytes"])
    for role, sums in roles.items():
        counts = (sums.weights, sums.bytes) if sums.weights else ("", "")
        table.add(role, sums.modules, _widths(sums.weight_bits), _widths(sums.activation_bits), *counts)
    modules, weights, size = (
        sum(getattr(sums, key) for sums in roles.values()) for key in ("modules", "weights", "bytes")
    )
    table.add("all", modules, "", "", weights, size)
    return table


def _widths(bits: tuple[int, ...]) -> str:
    return ", ".join(map(str, bits))


def _measured(figures: dict[str, Any]) -> Iterator[str]:
    """The accuracy of a quantized run and of its float model, or that of a trained run on its validation images."""
    for key, words in (("top1", "top-1"), ("knn", "kNN accuracy")):
        quantized = (figures.get("quantized") or {}).get(key, figures.get(f"val_{key}"))
        original = (figures.get("float") or {}).get(key)
        if quantized is not None:
            compared = "" if original is None else f" (float {original:.2f} %)"
            yield f"measured  {words} {quantized:.2f} %{compared} on {figures.get('data')}"
    alike = (figures.get("quantized") or {}).get("likeness") or {}
    cosine = alike.get("cosine", figures.get("val_cosine"))
    if cosine is not None:
        yield f"measured  cosine {cosine:.4f} to the float model's embeddings on {figures.get('data')}"


def _gives(num_classes: int) -> str:
    return f"{num_classes} classes" if num_classes else "embeddings"


def _modules(modules: "Sequence[InspectedModule]") -> Table:
    table = Table(["module", "tensor", ">bits", "method", "shape", ">bytes", "-grid", "-step", "-kind"])
    for module in modules:
        name, kind = module.name, module.kind
        if weight := module.weight:
            table.add(name, "weight", *_method(weight), _shape(weight.shape), weight.bytes, *_scale(weight), kind)
            name = kind = ""  # type: ignore[assignment]  # of the further rows
        for operand, quantizer in module.activations.items():
            table.add(name, operand, *_method(quantizer), "", "", *_scale(quantizer), kind)
            name = kind = ""  # type: ignore[assignment]
    return table


def _method(quantizer: "InspectedQuantizer") -> tuple[str, str]:
    return str(quantizer.bits), quantizer.method


def _scale(quantizer: "InspectedQuantizer") -> tuple[str, str]:
    return _grid(quantizer.grid), _step(quantizer)


def _grid(grid: "InspectedGrid") -> str:
    """The range of the codes and their offset, or the points of a table."""
    if grid.points is not None:
        points = [f"{point:.3g}" for point in grid.points]
        return " ".join(points if len(points) <= _POINTS else [*points[:2], f"... ({len(points)})", points[-1]])
    low, high = grid.offset or (0.0, 0.0)
    offset = "" if low == high == 0 else f" {low:+g}" if low == high else f" {low:+g}..{high:+g}"
    return f"{grid.low}..{grid.high}{offset}"


def _step(quantizer: "InspectedQuantizer") -> str:
    relative = " dynamic" if quantizer.dynamic else ""
    return _shape(quantizer.step_shape) + relative + (" + shifts" if quantizer.shifts else "")


def _shape(lengths: tuple[int, ...]) -> str:
    return "x".join(str(length) for length in lengths) or "1"


def _sizes(size: "LedgerWithRatio") -> Table:
    table = Table(["what the bytes are used for", ">bytes", ">"])
    for count, words in (
        (size.codes, "codes of weights"),
        (size.steps, "grid steps, zero points and tables of points"),
        (size.float_leftovers, "float tensors: biases, norms, embeddings, shifts"),
        (size.ideal, "ideal: codes at exactly their bits, and the rest"),
        (size.total, "the file"),
        (size.float_model, "weights of the float model"),
    ):
        table.add(words, count, megabytes(count))
    table.add("float model / file", f"{size.ratio:.2f}", "")
    return table
