"""Post-training quantization by a recipe, from start to end: prepare, convert, calibrate, then run the stages."""

import copy

from torch import nn

from ofqctl.convert import apply_plan, describe, make_plan, notes_on_sizes
from ofqctl.progress import Progress, silent
from ofqctl.ptq.calibration import calibrate
from ofqctl.ptq.task import Clock, Task
from ofqctl.ptq.units import Batches
from ofqctl.recipe import Recipe
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
    """Quantize a float model in place; no labels are needed.

    Args:
        model: A timm model in float, on the device to compute on; in evaluation mode afterwards.
        recipe: The recipe to follow.
        input_size: Size of one image, (3, H, W).
        images: Normalized calibration images, (B, 3, H, W) each.
        progress: Called to report progress.
        clock: Time budget; no new work starts once it is used up, but calibration is always finished.
        seed: Seed of everything random.

    Returns:
        The task: the plan with all its values settled, notes and figures.

    Raises:
        ModelError: Weights or activations that are not finite.
    """
    model.eval()
    stages = [(PTQ_STAGES[settings.stage], settings) for settings in recipe.ptq]
    preparing = [(stage, settings) for stage, settings in stages if "prepares" in stage.traits]
    after_calibration = [(stage, settings) for stage, settings in stages if "prepares" not in stage.traits]
    task = Task(model, model, make_plan(model, recipe, input_size), images, progress, clock or Clock(), seed)
    task.notes += notes_on_sizes(model, recipe)
    for stage, settings in preparing:
        stage.target(task, settings)
    task.original = copy.deepcopy(model) if after_calibration else model
    apply_plan(model, task.plan)
    progress("calibrate", 0, images.images)
    calibrate(model, task.plan, images, on_batch=lambda done: progress("calibrate", done, images.images))
    task.plan = describe(model, task.plan)
    for stage, settings in after_calibration:
        stage.target(task, settings)
    return task
