"""A recipe's post-training quantization from beginning to end: fold, convert, calibrate, then step by step."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from ofqctl.convert import convert, describe, make_plan
from ofqctl.progress import Progress, silent
from ofqctl.ptq.calibration import calibrate
from ofqctl.ptq.erq import refine_by_regression
from ofqctl.ptq.evolq import evolve
from ofqctl.ptq.layer_norm import fold_layer_norms
from ofqctl.ptq.reconstruction import reconstruct
from ofqctl.ptq.softmax import fit_softmax_steps
from ofqctl.ptq.task import Clock, Task
from ofqctl.ptq.units import Batches
from ofqctl.recipe import Plan, Recipe
from ofqctl.recipe.refining import ERQStep, EvolutionStep, LayerNormStep, ReconstructStep, SoftmaxStep

_STEPS: dict[type, Callable[[Task, Any], None]] = {
    SoftmaxStep: fit_softmax_steps,
    ERQStep: refine_by_regression,
    ReconstructStep: reconstruct,
    EvolutionStep: evolve,
}


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
    for step in recipe.ptq:
        if isinstance(step, LayerNormStep):
            progress("fold layer norms", 0, None)
            can_take = partial(_can_take, step, make_plan(model, recipe, input_size))
            fold_layer_norms(model, images, strength=step.strength, can_take=can_take)
    original = copy.deepcopy(model) if any(type(step) in _STEPS for step in recipe.ptq) else model
    plan = convert(model, recipe, input_size)
    progress("calibrate", 0, images.images)
    calibrate(model, plan, images, on_batch=lambda done: progress("calibrate", done, images.images))
    task = Task(model, original, describe(model, plan), images, progress, clock or Clock(), seed)
    for step in recipe.ptq:
        if type(step) in _STEPS:
            _STEPS[type(step)](task, step)
    return task


def _can_take(step: LayerNormStep, plan: Plan, name: str) -> bool:
    """Whether a layer's weights may take ranges over: with as many bits as its input, or as few as they like.

    A merged query and key is planned at its attention block, not at its Linear.
    """
    module = plan.modules.get(name) or plan.modules.get(name.rpartition(".")[0])
    if step.narrower or module is None or module.weight is None:
        return True
    inputs = module.operands.get("x") or module.operands.get("input")
    return inputs is not None and module.weight.bits >= inputs.bits
