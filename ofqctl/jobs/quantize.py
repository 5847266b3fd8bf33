"""The main job: a float model in, a packed low-bit run directory with measured figures out."""

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ofqctl.artifact import check_output, save_run, serialize
from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName, denormals_flushed, pick_device
from ofqctl.errors import RecipeError
from ofqctl.evaluation import evaluate, of_model, paired
from ofqctl.jobs.calibrating import calibration_images
from ofqctl.jobs.measuring import about_data, open_labelled
from ofqctl.jobs.mixing import Target, mix_precision
from ofqctl.jobs.overlap import Watched
from ofqctl.jobs.starting import open_float
from ofqctl.jobs.writing import about_run, default_output, float_model_bytes, run_config
from ofqctl.models import ModelRequest
from ofqctl.progress import Progress, silent
from ofqctl.ptq import Clock, quantize_post_training
from ofqctl.quantizers import fused
from ofqctl.recipe import Recipe


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
        target: What the bits of the weights may come to, allocated layer by layer; None leaves them to the recipe.
        time_budget: Seconds for the steps after calibration, > 0; None has no end.
        compiled: Whether the quantizers are compiled, which pays where a step runs them many times.
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
    target: Target | None = None
    time_budget: float | None = None
    compiled: bool = False


def quantize(request: QuantizeRequest, progress: Progress = silent) -> dict[str, Any]:
    """Convert, calibrate, optionally measure beside the float model, and write the run directory.

    Returns:
        Everything that was done and measured: ``results.json`` and where it lies.

    Raises:
        OfqctlError: Something a person can mend; nothing was written then.
    """
    started = time.perf_counter()
    if request.time_budget is not None and request.time_budget <= 0:
        raise RecipeError(f"--time-budget: {request.time_budget:g} seconds; more than 0 are needed")
    device = pick_device(request.device)
    if request.output is not None:
        check_output(request.output, overwrite=request.overwrite)
    torch.manual_seed(request.seed)
    progress("load the model", 0, None)
    loaded = open_float(request.model)
    output = request.output or _default_output(loaded.architecture, request)
    check_output(output, overwrite=request.overwrite)
    subject = of_model(loaded)
    size = tuple(subject.data_config["input_size"])
    evaluation = None
    if request.data is not None:
        evaluation = open_labelled(request.data, subject, batch_size=request.batch_size, workers=request.workers)
    float_bytes = float_model_bytes(loaded.model)
    model = loaded.model
    float_model = copy.deepcopy(model).to(device) if evaluation else model
    recipe = request.recipe
    with calibration_images(
        request.calibration,
        recipe.calibration,
        subject,
        device,
        progress,
        seed=request.seed,
        workers=request.workers,
    ) as calibration:
        clock = Clock(request.time_budget)
        with fused(request.compiled), denormals_flushed(device):
            model.to(device)
            images, mixed = calibration.batches, None
            if request.target is not None:
                recipe, mixed = mix_precision(model, recipe, request.target, size, images, progress)
            task = quantize_post_training(
                model, recipe, size, images, progress=progress, clock=clock, seed=request.seed
            )
        weights = serialize(model)
        figures = None
        if evaluation is not None:
            watched = Watched(evaluation, images)
            metrics = evaluate(
                {"float": float_model, "quantized": model},
                watched,
                device=device,
                total=evaluation.image_count,
                progress=progress,
            )
            figures = about_data(evaluation, subject) | {name: found.as_dict() for name, found in metrics.items()}
            figures["paired"] = paired(metrics["float"], metrics["quantized"])
            calibration.notes += watched.notes
    config = run_config(loaded, recipe, task.plan, weights, float_bytes)
    results = about_run(model, config, weights) | {
        "calibration": calibration.about,
        "evaluation": figures,
        "ptq": task.figures,
        "mixed_precision": mixed,
        "notes": [*loaded.notes, *calibration.notes, *task.notes],
        "seed": request.seed,
        "device": str(device),
        "seconds": round(time.perf_counter() - started, 2),
    }
    if mixed is not None:
        results["bits"]["weights"] = round(mixed["average_bits"], 3)
    if request.strict:
        refuse_undone(results)
    save_run(output, model, weights, config, results)
    return {"output": str(output)} | results


def _default_output(architecture: str, request: QuantizeRequest) -> Path:
    if request.target is None:
        return default_output(architecture, request.recipe)
    return Path("runs") / f"{architecture}-mixed-a{request.recipe.activations.bits}"


def refuse_undone(results: dict[str, Any]) -> None:
    """Refuse a result in which anything was left undone.

    Raises:
        RecipeError: Names everything left in float and every note.
    """
    undone = [f"{left['module']}: {left['reason']}" for left in results["left_float"]] + results["notes"]
    if undone:
        raise RecipeError("\n  ".join(["--strict: not everything was done as asked:", *undone]))
