"""The main job: a float model in, a packed low-bit run directory with measured figures out."""

import copy
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ofqctl.artifact import check_output, save_run, serialize
from ofqctl.convert import convert, describe
from ofqctl.data import DataSpec, ImageData, ImageLoader, image_loader, open_data, synthetic_images
from ofqctl.devices import DeviceName, pick_device
from ofqctl.errors import DataError, ModelError, RecipeError
from ofqctl.evaluation import Subject, holds_run, of_model
from ofqctl.jobs.measuring import about_data, measure, open_labelled
from ofqctl.jobs.writing import about_run, default_output, float_model_bytes, run_config
from ofqctl.models import ModelRequest, load_model
from ofqctl.progress import Progress, silent
from ofqctl.ptq import calibrate
from ofqctl.recipe import Recipe

SYNTHETIC = "calibrated on synthetic images: accuracy cannot be expected; give --calib-data"


@dataclass(frozen=True)
class QuantizeRequest:
    """What to quantize, how, and where to write it.

    Attributes:
        model: The float model.
        recipe: What to do to it.
        output: The run directory; None derives a name from model and bits under ``runs/``.
        calibration: Calibration images, labels unused; None calibrates on synthetic images.
        data: Labelled images to measure the float and the quantized model on, or None.
        overwrite: Whether to replace an existing run.
        seed: Decides random weights and the choice of calibration images.
        device: Where to compute.
        batch_size: Images in one forward pass of the evaluation.
        workers: Processes that decode images.
        strict: Whether anything left undone is an error.
    """

    model: ModelRequest
    recipe: Recipe
    output: Path | None = None
    calibration: DataSpec | None = None
    data: DataSpec | None = None
    overwrite: bool = False
    seed: int = 0
    device: DeviceName = "auto"
    batch_size: int = 64
    workers: int = 0
    strict: bool = False


def quantize(request: QuantizeRequest, progress: Progress = silent) -> dict[str, Any]:
    """Convert, calibrate, optionally measure beside the float model, and write the run directory.

    Returns:
        Everything that was done and measured: ``results.json`` and where it lies.

    Raises:
        OfqctlError: Something a person can mend; nothing was written then.
    """
    started = time.perf_counter()
    _refuse_run(request.model.name)
    device = pick_device(request.device)
    if request.output is not None:
        check_output(request.output, overwrite=request.overwrite)
    torch.manual_seed(request.seed)
    progress("load the model", 0, None)
    loaded = load_model(request.model)
    output = request.output or default_output(loaded.architecture, request.recipe)
    check_output(output, overwrite=request.overwrite)
    subject = of_model(loaded)
    evaluation = None
    if request.data is not None:
        evaluation = open_labelled(request.data, subject, batch_size=request.batch_size, workers=request.workers)
    float_bytes = float_model_bytes(loaded.model)
    model = loaded.model
    float_model = copy.deepcopy(model).to(device) if evaluation else None
    images, about_calibration, notes = _calibration_images(request, subject)
    plan = convert(model, request.recipe, tuple(subject.data_config["input_size"]))
    model.to(device)
    calibrate(model, plan, _told(images, request.recipe.calibration.images, progress))
    plan = describe(model, plan)
    weights = serialize(model)
    figures = None
    if evaluation is not None and float_model is not None:
        metrics = measure({"float": float_model, "quantized": model}, evaluation, device, progress)
        figures = about_data(evaluation, subject) | metrics
    config = run_config(loaded, request.recipe, plan, weights, float_bytes)
    results = about_run(model, config, weights) | {
        "calibration": about_calibration,
        "evaluation": figures,
        "notes": [*loaded.notes, *notes],
        "seed": request.seed,
        "device": str(device),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if request.strict:
        refuse_undone(results)
    save_run(output, weights, config, results)
    return {"output": str(output)} | results


def _refuse_run(name: str) -> None:
    """Refuse the path of a run directory as the model: it is quantized already."""
    path = Path(name.removeprefix("local-dir:"))
    if holds_run(path):
        raise ModelError(
            f"model '{name}': is a run directory, which holds a model that is quantized already",
            hint=f"`ofqctl evaluate {path} --data DATA` measures it; quantize starts from a float model",
        )


def refuse_undone(results: dict[str, Any]) -> None:
    """Refuse a result in which anything was left undone.

    Raises:
        RecipeError: Names everything left in float and every note.
    """
    undone = [f"{left['module']}: {left['reason']}" for left in results["left_float"]] + results["notes"]
    if undone:
        raise RecipeError("\n  ".join(["--strict: not everything was done as asked:", *undone]))


def _calibration_images(
    request: QuantizeRequest, subject: Subject
) -> tuple[ImageLoader | list[tuple[Tensor, None]], dict[str, Any], list[str]]:
    """Batches of calibration images, what to say about them, and notes."""
    wanted = request.recipe.calibration
    if request.calibration is None:
        batches = synthetic_images(subject.data_config, wanted.images, wanted.batch_size, request.seed)
        return [(images, None) for images in batches], {"data": "synthetic", "images": wanted.images}, [SYNTHETIC]
    data = _open_calibration(request.calibration)
    loader = image_loader(
        data,
        subject.data_config,
        batch_size=wanted.batch_size,
        workers=request.workers,
        limit=wanted.images,
        seed=request.seed,
    )
    notes = list(data.notes)
    if data.image_count is not None and data.image_count < wanted.images:
        notes.append(f"calibration: {data.name} has {data.image_count} images, {wanted.images} were asked for")
    return loader, {"data": data.name, "images": loader.image_count}, notes


def _open_calibration(spec: DataSpec) -> ImageData:
    """The data, its training split where none was named and there is one: the others are for measuring."""
    if spec.split is None:
        with suppress(DataError):  # no such split, or a fault that opening it as it is reports
            return open_data(replace(spec, split="train"))
    return open_data(spec)


def _told(images: ImageLoader | list[tuple[Tensor, None]], total: int, progress: Progress) -> Iterator[Tensor]:
    """The images alone, each batch told to ``progress`` once the model has seen it."""
    done = 0
    progress("calibrate", 0, total)
    for batch, _ in images:
        yield batch
        done += len(batch)
        progress("calibrate", done, total)
