"""``ofqctl sensitivity``."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ofqctl.cli import options
from ofqctl.cli.arguments import parse_widths
from ofqctl.cli.groups import group, option
from ofqctl.cli.output import Table

if TYPE_CHECKING:
    from ofqctl.results.sensitivity import SensitivityResult

EXAMPLES = (
    "ofqctl sensitivity deit_small --calib-data imagenet/train --plot sensitivity.svg",
    "ofqctl sensitivity deit_small --calib-data imagenet/train --bits 2,3,4 --part weights --json",
)


@group("Options")
class _What:
    bits: str = option("N,N,...", "Bit-widths to try.", default="2,3,4,8")
    part: Literal["all", "weights", "activations"] = option(
        "all|weights|activations", "Which part of a layer is quantized.", default="all"
    )
    measure: Literal["kl", "gradient", "fisher"] = option(
        "kl|gradient|fisher",
        "`kl` measures each layer; the others estimate all in one pass, `fisher` by the second-order term of the loss, "
        "`gradient` by the first and the second.",
        default="kl",
    )


@group("Recipe")
class _Recipe:
    recipe: str = option(
        "NAME|FILE", "Recipe that says how a layer is quantized, except for the bits.", default="ptq/mse"
    )


@group("Data")
class _Calibration(options.CalibrationOptions):
    calib_images: str = option("N", "Number of calibration images.", default="32")


@group("Output")
class _Output:
    plot: Path | None = option("FILE", "Draw the sensitivities to a .png, .svg or .pdf file.")


def sensitivity(
    model: options.FloatModel,
    *,
    what: _What,
    recipe: _Recipe,
    settings: options.RecipeOptions,
    calibration: _Calibration,
    reading: options.ImageOptions,
    weights: options.ModelOptions,
    output: _Output,
    printing: options.PrintOptions,
    execution: options.ExecutionOptions,
    seed: options.Seed = 0,
) -> None:
    """Rank layers by how much the model's output changes when only that layer is quantized."""
    from ofqctl.recipe import catalogue

    widths = parse_widths("--bits", what.bits)
    resolved = catalogue.load(recipe.recipe, settings.changes(("calibration.images", calibration.calib_images)))

    from ofqctl.jobs.sensitivity import SensitivityRequest
    from ofqctl.jobs.sensitivity import sensitivity as run

    request = SensitivityRequest(
        model=weights.request(model),
        recipe=resolved,
        calibration=calibration.spec(reading),
        bits=widths,
        part=what.part,
        measure=what.measure,
        plot=output.plot,
        seed=seed,
        device=execution.device,
        workers=execution.workers,
    )
    with printing.sink() as sink:
        sink.show(run(request, sink.progress), _render)


def _render(result: "SensitivityResult") -> Iterator[Table | str]:
    what = "weights and activations" if result.part == "all" else result.part
    from ofqctl.ptq.divergence import MEASURES

    how = "" if result.measure == "kl" else f", estimated by `{result.measure}`"
    title = f"{result.model}: {MEASURES[result.unit]}, when only one layer's {what} are quantized{how}"
    table = Table(["layer", *(f">{bits} bits" for bits in result.bits)], title=title)
    for layer in result.layers:
        table.add(layer.layer, *(_figures(layer.damage[str(bits)]) for bits in result.bits))
    yield table
    yield ""
    yield f"measured  on {result.calibration.images} images of {result.calibration.data}"
    if result.plot:
        yield f"drawn     in {result.plot}"


def _figures(value: float) -> str:
    """A number with the two digits that count, without an exponent down to 0.0001."""
    if abs(value) < 1e-4:
        return f"{value:.1e}" if value else "0"
    return f"{value:.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"
