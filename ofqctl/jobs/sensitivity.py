"""Find the layers that are most sensitive to few bits."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ofqctl.convert import convert
from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName, denormals_flushed, pick_device, suited_threads
from ofqctl.errors import DataError
from ofqctl.evaluation import of_model
from ofqctl.files import output_file, replaced_file
from ofqctl.jobs.calibrating import calibration_images
from ofqctl.jobs.starting import open_float
from ofqctl.models import ModelRequest
from ofqctl.oscillation import role_of
from ofqctl.progress import Progress, silent
from ofqctl.ptq import calibrate
from ofqctl.ptq.divergence import MEASURES, measure_of
from ofqctl.ptq.sensitivity import Measure, Part, check_measure, sensitivities
from ofqctl.recipe import Recipe
from ofqctl.recipe.schema import Layer
from ofqctl.results.sensitivity import LayerSensitivity, SensitivityResult


@dataclass(frozen=True)
class SensitivityRequest:
    """A request to measure sensitivities.

    Attributes:
        model: The float model.
        recipe: Recipe that says how layers are quantized, except for the bits.
        calibration: Calibration images (labels are not used); None uses synthetic images.
        bits: Bit-widths to try.
        part: Quantize weights, activations or all of one layer at a time.
        measure: How sensitivities are found.
        plot: Path of a .png, .svg or .pdf file for a plot of the result, or None.
        seed: Seed of random weights and of the choice of images.
        device: Device to compute on.
        workers: Number of processes that decode images.
    """

    model: ModelRequest
    recipe: Recipe
    calibration: DataSpec | None = None
    bits: tuple[int, ...] = (2, 3, 4, 8)
    part: Part = "all"
    measure: Measure = "kl"
    plot: Path | None = None
    seed: int = 0
    device: DeviceName = "auto"
    workers: int = 0


def sensitivity(request: SensitivityRequest, progress: Progress = silent) -> SensitivityResult:
    """Quantize one layer at a time, at each width, and measure or estimate how much the model's output changes.

    Returns:
        Layers, most sensitive first, each with its damage for each width, in what ``unit`` says (see `divergence`).

    Raises:
        OfqctlError: An error that the user can fix.
    """
    _check(request)
    with output_file(request.plot):
        return _sensitivity(request, progress)


def _sensitivity(request: SensitivityRequest, progress: Progress) -> SensitivityResult:
    started = time.perf_counter()
    device = pick_device(request.device)
    torch.manual_seed(request.seed)
    progress("load the model", 0, None)
    loaded = open_float(request.model)
    subject = of_model(loaded)
    size = tuple(subject.data_config["input_size"])
    check_measure(request.measure, measure_of(loaded.model))
    table: dict[str, dict[str, float]] = {}
    with calibration_images(
        request.calibration,
        request.recipe.calibration,
        subject,
        device,
        progress,
        seed=request.seed,
        workers=request.workers,
    ) as images:
        for bits in request.bits:
            model = copy.deepcopy(loaded.model).to(device)
            plan = convert(model, _at(request.recipe, bits), size)
            with denormals_flushed(device), suited_threads(model):
                calibrate(model, plan, images.batches)
                for found in sensitivities(
                    model,
                    plan,
                    bits,
                    images.batches,
                    part=request.part,
                    measure=request.measure,
                    progress=progress,
                ):
                    table.setdefault(found.module, {})[str(bits)] = found.damage
    ranked = sorted(table.items(), key=lambda layer: max(layer[1].values()), reverse=True)
    result = SensitivityResult(
        model=loaded.architecture,
        recipe=request.recipe.name,
        part=request.part,
        measure=request.measure,
        unit=measure_of(loaded.model),
        bits=request.bits,
        layers=tuple(LayerSensitivity(layer=name, damage=dict(damage)) for name, damage in ranked),
        calibration=images.about,
        plot=None if request.plot is None else str(request.plot),
        notes=(*loaded.notes, *images.notes),
        seconds=round(time.perf_counter() - started, 2),
    )
    if request.plot is not None:
        plans = plan.modules
        _draw(result, {name: role_of(name, plans[name].kind) for name, _ in model.named_modules() if name in plans})
    return result


def _draw(result: SensitivityResult, roles: dict[str, str]) -> None:
    """Write the plot, with the layers in the order of ``roles``, which is that of the model."""
    from ofqctl.reports.sensitivity import draw

    path = Path(str(result.plot))
    damage = {layer.layer: {int(bits): value for bits, value in layer.damage.items()} for layer in result.layers}
    what = "weights and activations" if result.part == "all" else result.part
    how = "" if result.measure == "kl" else f", estimated ({result.measure})"
    title = f"{result.model}: {what} of one layer quantized at a time\n{MEASURES[result.unit]}{how}"
    drawn = {name: damage[name] for name in roles if name in damage}
    content = draw(drawn, roles, title, path.suffix[1:])  # type: ignore[arg-type]
    with replaced_file(path) as fresh:
        fresh.write_bytes(content)


def _check(request: SensitivityRequest) -> None:
    if request.plot is not None and request.plot.suffix not in (".png", ".svg", ".pdf"):
        raise DataError(f"--plot {request.plot}: cannot be drawn; its name ends in .png, .svg or .pdf")


def _at(recipe: Recipe, bits: int) -> Recipe:
    """The recipe with all quantizers at ``bits``, including first and last layers, and without exceptions."""
    weights = recipe.weights.model_copy(update={"bits": bits})
    activations = recipe.activations.model_copy(update={"bits": bits})
    return recipe.model_copy(
        update={
            "weights": weights,
            "activations": activations,
            "first": _layer(recipe.first, bits),
            "last": _layer(recipe.last, bits),
            "layers": (),
        }
    )


def _layer(layer: Layer, bits: int) -> Layer:
    return layer.model_copy(
        update={
            "weights": layer.weights.model_copy(update={"bits": bits}),
            "activations": layer.activations.model_copy(update={"bits": bits}),
        }
    )
