"""``ofqctl quantize``."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_size, parse_widths
from ofqctl.cli.groups import flag, group, option
from ofqctl.cli.summary import next_commands, run_summary, training_hint
from ofqctl.errors import RecipeError

if TYPE_CHECKING:
    from ofqctl.jobs.mixing import Target
    from ofqctl.results.quantize import MixedPrecision, QuantizeResult

AT_8_BITS, WITH_IMAGES, WITHOUT_IMAGES = "deploy/w8a8", "ptq/best", "ptq/minmax"
Cost = Literal["bits", "latency"]
Measure = Literal["kl", "gradient", "fisher"]

EXAMPLES = (
    "ofqctl quantize deit_small --wbits 4 --abits 8 --calib-data imagenet/train --data imagenet/val",
    "ofqctl quantize deit_small --recipe ptq/minmax --calib-data imagenet/train --data imagenet/val",
    "ofqctl quantize deit_small --target-bits 4.0 --calib-data imagenet/train",
    "ofqctl quantize local-dir:models/vit --recipe ptq/mse --set weights.bits=4 activations.bits=4",
    "ofqctl quantize vit_small_patch14_reg4_dinov2 --wbits 4 --abits 8 --calib-data photos --data photos --tokens",
    "ofqctl quantize vit_tiny --no-pretrained --num-classes 10 --calib-data digits --data digits --json",
)


@group("Recipe")
class _Recipe:
    wbits: str | None = option("N", "Bits of the weights: 1-8, or 32 for float.")
    abits: str | None = option("N", "Bits of the activations: 1-8, or 32 for float.")
    recipe: str | None = option(
        "NAME|FILE",
        "Name of a recipe (see `ofqctl recipe ls`), or a YAML file; "
        f"by default {AT_8_BITS} at 8 bits with --calib-data, {WITH_IMAGES} at others, {WITHOUT_IMAGES} without.",
    )


@group("Mixed precision")
class _Mixing:
    target_bits: float | None = option(
        "BITS", "Mixed precision: average bits of the weights, allocated by each layer's sensitivity."
    )
    target_size: str | None = option("SIZE", "Mixed precision: largest size of the weights' file, such as 3MB.")
    target_abits: float | None = option(
        "BITS", "Mixed precision: average bits of the activations, over the numbers in them, allocated alike."
    )
    candidates: str = option(
        "N,N,...", "Mixed precision: bit-widths to choose from for each layer.", default="2,3,4,5,6,8"
    )
    cost: Cost = option(
        "bits|latency",
        "What --target-bits limits: `bits`, their average over all weights, or `latency`, the time that layers would "
        "take at so many bits, measured on this machine.",
        default="bits",
    )
    measure: Measure = option(
        "kl|gradient|fisher",
        "How sensitivities are found: `kl` measures each, in minutes; the others estimate all in one pass, `fisher` by "
        "the second-order term of the loss, `gradient` by the first and the second.",
        default="kl",
    )

    def target(self) -> "Target | None":
        """The target; None without one."""
        bits, size = self.target_bits, self.target_size
        if self.cost == "latency" and (bits is None or size is not None):
            raise RecipeError("--cost latency: needs --target-bits, which says how long layers may take")
        if bits is None and size is None and self.target_abits is None:
            return None
        if bits is not None and size is not None:
            raise RecipeError("--target-bits and --target-size: only one of them can be given")
        from ofqctl.jobs.mixing import Target

        return Target(
            bits=bits,
            size=None if size is None else parse_size(size),
            activation_bits=self.target_abits,
            candidates=parse_widths("--candidates", self.candidates, least=2),
            cost=self.cost,
            measure=self.measure,
        )


@group("Output")
class _Output(options.RunOptions):
    strict: bool = flag(
        "Fail if anything was left undone, left out or guessed: a module in float, an image skipped.", "--strict"
    )


@group("Execution")
class _Execution(options.BatchedOptions):
    time_budget: float | None = option(
        "SECONDS", "Time limit in seconds for the stages after calibration; a note says what was left out."
    )
    compiled: bool = flag(
        "Compile the quantizers: about half a minute first, then faster; needs a C++ compiler.", "--compile"
    )


def quantize(
    model: options.FloatModel,
    *,
    recipe: _Recipe,
    settings: options.RecipeOptions,
    mixing: _Mixing,
    calibration: options.CalibrationOptions,
    data: options.Data = None,
    embeddings: options.EmbeddingOptions,
    reading: options.StreamedDataOptions,
    weights: options.ModelOptions,
    output: _Output,
    printing: options.PrintOptions,
    execution: _Execution,
    seed: options.Seed = 0,
) -> None:
    """Quantize a float model, measure both, and write a run directory."""
    from ofqctl.recipe import catalogue

    shorthand = (("weights.bits", recipe.wbits), ("activations.bits", recipe.abits))
    changes = settings.changes(*shorthand, ("calibration.images", calibration.calib_images))
    target = mixing.target()
    at_8_bits = recipe.wbits in (None, "8") and recipe.abits in (None, "8") and target is None
    default = (AT_8_BITS if at_8_bits else WITH_IMAGES) if calibration.calib_data else WITHOUT_IMAGES
    resolved = catalogue.load(recipe.recipe or default, changes)

    from ofqctl.jobs.quantize import QuantizeRequest
    from ofqctl.jobs.quantize import quantize as run

    request = QuantizeRequest(
        model=weights.request(model),
        recipe=resolved,
        output=output.output,
        calibration=calibration.spec(reading),
        data=reading.labelled(data) if data else None,
        overwrite=output.overwrite,
        seed=seed,
        device=execution.device,
        batch_size=execution.batch_size,
        workers=execution.workers,
        strict=output.strict,
        target=target,
        time_budget=execution.time_budget,
        compiled=execution.compiled,
        index=embeddings.index(reading),
        tokens=embeddings.tokens,
    )
    with printing.sink() as sink:
        sink.show(
            run(request, sink.progress), lambda result: _render(result, model, data, chosen=recipe.recipe is not None)
        )


def _render(result: "QuantizeResult", model: str, data: str | None, *, chosen: bool) -> Iterator[Any]:
    from ofqctl.results.quantize import ChosenRows

    yield from run_summary(result, result.evaluation)
    if result.recipe == AT_8_BITS and not chosen:
        yield f"recipe    {AT_8_BITS} makes the fastest files; --recipe {WITH_IMAGES} takes minutes for more accuracy"
    rows = result.ptq.get("rows")
    if isinstance(rows, ChosenRows):
        yield f"rows      the inputs of {len(rows.chosen)} of {len(rows.errors)} layers are quantized row by row"
    if result.mixed_precision is not None:
        yield from _mixed(result.mixed_precision)
    yield from training_hint(result.bits, model, result.gives)
    yield from next_commands(Path(str(result.output)), data)


def _mixed(mixed: "MixedPrecision") -> Iterator[str]:
    for part, allocation in (("weights", mixed.weights), ("activations", mixed.activations)):
        if allocation is None:
            continue
        counts = Counter(allocation.bits.values())
        spread = ", ".join(f"{counts[bits]} layers at {bits}" for bits in sorted(counts))
        yield f"mixed     {allocation.average_bits:.3f} bits of {part} on average: {spread}"
        cost = allocation.cost
        if cost.unit == "ms":
            yield f"products  {cost.spent:.2f} ms of {cost.budget:.2f} ms, one image, one thread"
    unit = " nats" if mixed.unit == "kl" else ""
    yield f"together  {mixed.measured:.4g}{unit} from float; the sum over layers predicted {mixed.predicted:.4g}"
