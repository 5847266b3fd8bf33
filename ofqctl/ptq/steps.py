"""A recipe's post-training quantization from beginning to end: prepare, convert, calibrate, then stage by stage."""

import copy

from torch import nn

from ofqctl.convert import convert, describe, make_plan
from ofqctl.progress import Progress, silent
from ofqctl.ptq.calibration import calibrate
from ofqctl.ptq.task import Clock, Task
from ofqctl.ptq.units import Batches
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.methods import PTQ_STAGES


def quantize_post_training(
    model: nn.Module,
    recipe: Recipe,
    input_size: tuple[int, int, int],
    images: Batches,
    *,
    progress: Progress = silent,
    clock: Clock | None = None,
    seed: int = 0,
) -> Task:
    """Quantize a float model in place, as far as can be done without labels.

    Args:
        model: A timm model in float, on the device to compute on; in evaluation mode afterwards.
        recipe: What to do.
        input_size: (3, H, W).
        images: Normalized calibration images, (B, 3, H, W) each.
        progress: Told what goes on.
        clock: When to stop; calibration itself is always finished.
        seed: Decides every draw.

    Returns:
        What was done: the plan with everything settled, notes and figures.

    Raises:
        ModelError: Weights or activations that are not finite.
    """
    model.eval()
    stages = [(PTQ_STAGES[settings.step], settings) for settings in recipe.ptq]
    ahead = [(stage, settings) for stage, settings in stages if "prepares" in stage.traits]
    behind = [(stage, settings) for stage, settings in stages if "prepares" not in stage.traits]
    plan = make_plan(model, recipe, input_size) if ahead else Plan(modules={})
    task = Task(model, model, plan, images, progress, clock or Clock(), seed)
    for stage, settings in ahead:
        stage.target(task, settings)
    task.original = copy.deepcopy(model) if behind else model
    plan = convert(model, recipe, input_size)
    progress("calibrate", 0, images.images)
    calibrate(model, plan, images, on_batch=lambda done: progress("calibrate", done, images.images))
    task.plan = describe(model, plan)
    for stage, settings in behind:
        stage.target(task, settings)
    return task
