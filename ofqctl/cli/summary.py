"""The summary that ``quantize`` and ``import`` print at the end."""

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ofqctl.cli.embeddings import embedding_lines, embedding_rows
from ofqctl.cli.output import Aside, Table, megabytes
from ofqctl.files import TRACKER_FILE

if TYPE_CHECKING:
    from ofqctl.recipe.plan import LeftFloat
    from ofqctl.results.accuracy import Paired
    from ofqctl.results.embeddings import ComparedEmbeddings
    from ofqctl.results.quantize import Compared
    from ofqctl.results.run import Bits, ModelBits, RunResult

_FLOAT_BITS = "32"
_SHOWN_REASONS = 5
_NEEDS_TRAINING = 3  # bits


def run_summary(result: "RunResult", figures: "Compared | ComparedEmbeddings | None" = None) -> Iterator[Table | str]:
    """The float and the quantized model side by side, and what stayed in float."""
    from ofqctl.results.embeddings import ComparedEmbeddings

    size, bits = result.size, result.bits
    table = Table(["", ">float model", ">quantized"], title=f"{result.model}, recipe {result.recipe}")
    table.add("weight bits", _FLOAT_BITS, bits.weights)
    table.add("  first, last layer", _FLOAT_BITS, f"{bits.first.weights}, {bits.last.weights}")
    table.add("activation bits", _FLOAT_BITS, bits.activations)
    table.add("  first, last layer", _FLOAT_BITS, f"{bits.first.activations}, {bits.last.activations}")
    table.add("size", megabytes(size.float_model), megabytes(size.total))
    if isinstance(figures, ComparedEmbeddings):
        embedding_rows(table, [figures.float, figures.quantized])
    elif figures:
        before, after = figures.float, figures.quantized
        table.add("top-1 accuracy", f"{before.top1:.2f} %", f"{after.top1:.2f} %")
        table.add("top-5 accuracy", f"{before.top5:.2f} %", f"{after.top5:.2f} %")
        table.add("loss", f"{before.loss:.4f}", f"{after.loss:.4f}")
        table.add("images/s", f"{before.images_per_second:.1f}", f"{after.images_per_second:.1f}")
    yield table
    yield ""
    yield f"size      {size.float_model / size.total:.1f} times smaller"
    if figures:
        yield f"measured  on {figures.quantized.images} images of {figures.data}; {figures.labels}"
        if isinstance(figures, ComparedEmbeddings):
            yield from embedding_lines(figures.neighbours, figures.paired, " " * 10)
        else:
            yield paired_line(figures.paired)
        yield from (f"          {note}" for note in figures.data_notes)
        if figures.turned:
            yield f"turned    {figures.turned} images, upright as their EXIF orientation says"
        if figures.skipped:
            yield f"skipped   {len(figures.skipped)} images, first {figures.skipped[0].image}"
    else:
        yield "measured  nothing: accuracy is unknown (--data DATA measures it)"
    yield f"quantized {result.quantized_modules} modules"
    yield from left_float_lines(result.left_float)


def paired_line(paired: "Paired") -> str:
    """The difference of the two models on the same images."""
    change = f"{paired.difference:+.2f} ± {paired.standard_error:.2f} points of top-1"
    return f"          {change}, image by image: {paired.lost} lost, {paired.gained} gained"


def left_float_lines(left_float: "Sequence[LeftFloat]") -> Iterator[str]:
    """The number of modules that stayed in float, by type and reason."""
    if not left_float:
        yield "in float  biases, norms, embeddings; no Linear, Conv2d or product of attention"
        return
    reasons = Counter((left.type, left.reason) for left in left_float)
    for (kind, reason), count in reasons.most_common(_SHOWN_REASONS):
        yield f"in float  {count} x {kind}: {reason}"
    if len(reasons) > _SHOWN_REASONS:
        yield f"in float  and {len(reasons) - _SHOWN_REASONS} more reasons: `ofqctl inspect` lists all"


def training_hint(bits: "Bits | ModelBits", model: str, gives: str = "classes") -> Iterator[str]:
    """The command that trains a model at bit-widths at which calibration alone leaves little of its accuracy."""
    low = min(bits.weights, bits.activations)
    if low > _NEEDS_TRAINING:
        return
    widths = {"weights": round(bits.weights), "activations": round(bits.activations)}  # an average may lie between
    family, shipped, features = "vit", max(min(widths.values()), 2), ""
    if gives == "embeddings":
        family, shipped, features = "backbone", 2, " --features"
    sets = " ".join(f"{part}.bits={width}" for part, width in widths.items() if width != shipped)
    yield f"accuracy  calibration alone leaves little of it at {low} bits; training brings it back:"
    recipe = f"ofq/{family}_w{shipped}a{shipped}" + (f" --set {sets}" if sets else "")
    yield f"          ofqctl train {shlex.quote(model)}{features} --recipe {recipe} --data DATA --val-data DATA"


def next_commands(output: Path, data: str | None) -> Iterator[str]:
    """Suggestions for the next commands."""
    run = shlex.quote(str(output))
    yield f"written   to {output}"
    yield Aside("")
    yield Aside("Next:")
    yield Aside(f"  ofqctl inspect {run}")
    yield Aside(f"  ofqctl evaluate {run} --data {shlex.quote(data) if data else 'DATA'}")
    yield Aside(f"  ofqctl predict {run} IMAGE")
    yield Aside(f"  ofqctl export {run} --onnx")
    if (output / TRACKER_FILE).is_file():
        yield Aside(f"  ofqctl analyze-oscillation {run} --html report.html")
