"""Evol-Q (Frumkin et al., ICCV 2023): evolutionary search over weight steps with a contrastive loss.

The steps of one block at a time change by small random factors, last block first; a child stays in the population if
its loss on the calibration images is among the best. Of all passes the one is kept whose loss is least on calibration
images that the search never saw.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ofqctl.convert import weight_site
from ofqctl.errors import RecipeError
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Batches, find_units, rebatched
from ofqctl.quantizers import Quantizer
from ofqctl.recipe.refining import EvolutionStep

_IMAGES_COMPARED = 16  # in one contrast; a batch of the loss
Steps = list[Tensor]


@dataclass
class _Score:
    """The loss of the model as it is now, on some of the batches."""

    task: Task
    images: Batches
    logits: list[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]

    def on(self, batches: range) -> float:
        """Mean loss on the batches with these numbers."""
        with torch.no_grad():
            losses = [float(self.loss(self.task.model(self.images[i]), self.logits[i])) for i in batches]
        return sum(losses) / len(losses)


def evolve(task: Task, step: EvolutionStep) -> None:
    """Search the steps of every weight quantizer that has steps of its own (StatsQ's follow from the weights)."""
    if task.images.images < 2:
        raise RecipeError("ptq: evolq needs at least 2 calibration images", hint="--calib-images N")
    blocks = _blocks(task)
    images = rebatched(task.images, min(_IMAGES_COMPARED, task.images.images // 2))
    kept_out = max(1, round(step.held_out * len(images)))
    searched, held_out = range(len(images) - kept_out), range(len(images) - kept_out, len(images))
    with torch.no_grad():
        logits = [task.original(batch) for batch in images]
    score = _Score(task, images, logits, lambda ours, theirs: distance(ours, theirs, step))
    draws = random.Random(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    loss, held = score.on(searched), score.on(held_out)
    curve = {"searched": [loss], "held_out": [held]}
    best, best_steps = held, [_copies(block) for block in blocks]
    for number in range(step.passes):
        for done, block in enumerate(reversed(blocks)):
            task.progress("evolq", number * len(blocks) + done, step.passes * len(blocks))
            if task.clock.over:
                break
            loss = _search(block, loss, score, searched, step, draws, generator)
        held = score.on(held_out)
        curve["searched"].append(loss)
        curve["held_out"].append(held)
        if held < best:
            best, best_steps = held, [_copies(block) for block in blocks]
        if task.clock.over:
            task.notes.append(f"evolq: the time budget ended it in pass {number + 1} of {step.passes}")
            break
    task.progress("evolq", step.passes * len(blocks), step.passes * len(blocks))
    for block, steps in zip(blocks, best_steps, strict=True):
        _set(block, steps)
    images.delete()
    task.figures["evolq"] = curve


def distance(ours: Tensor, theirs: Tensor, step: EvolutionStep) -> Tensor:
    """How far the logits of the quantized model are from those of the float model, a scalar.

    Args:
        ours: Of the quantized model, (B, classes).
        theirs: Of the float model, (B, classes).
        step: Says which loss. ``infonce``: each image's logits are to be more like the float model's for the same image
            than for the others.
    """
    if step.loss == "mse":
        return F.mse_loss(ours, theirs)
    if step.loss == "cosine":
        return 1.0 - F.cosine_similarity(ours, theirs, dim=1).mean()
    if step.loss == "kl":
        return F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), log_target=True, reduction="batchmean")
    alike = F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T / step.temperature
    return F.cross_entropy(alike, torch.arange(len(ours), device=ours.device))


def _blocks(task: Task) -> list[list[Quantizer]]:
    """The weight quantizers with steps of their own, by unit; those outside of every unit come first."""
    units = [unit.name for unit, _ in find_units(task.original, task.plan, task.images[0][:2])]
    blocks: dict[str, list[Quantizer]] = {name: [] for name in ("", *units)}
    for name in task.plan.modules:
        site = weight_site(task.model.get_submodule(name))
        quantizer = None if site is None else site.weight_quantizer
        if quantizer is not None and hasattr(quantizer, "step"):
            unit = next((u for u in units if name == u or name.startswith(f"{u}.")), "")
            blocks[unit].append(quantizer)
    found = [block for block in blocks.values() if block]
    if not found:
        raise RecipeError(
            "ptq: evolq has no steps to search: StatsQ's follow from the weights",
            hint="--set weights.method=uniform",
        )
    return found


def _search(
    block: list[Quantizer],
    loss: float,
    score: _Score,
    batches: range,
    step: EvolutionStep,
    draws: random.Random,
    generator: torch.Generator,
) -> float:
    """A few generations of one block's steps; sets the fittest and returns its loss."""
    population = [(loss, _copies(block))] * step.population
    for _ in range(step.cycles):
        drawn = draws.sample(population, min(step.tournament, len(population)))
        _, parent = min(drawn, key=lambda individual: individual[0])
        child = [s * _factors(s, step.epsilon, generator) for s in parent]
        _set(block, child)
        population.append((score.on(batches), child))
        del population[max(range(len(population)), key=lambda i: population[i][0])]
    loss, fittest = min(population, key=lambda individual: individual[0])
    _set(block, fittest)
    return loss


def _factors(steps: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Uniform in ``1 - epsilon .. 1 + epsilon``, like ``steps``."""
    return 1.0 + epsilon * (2.0 * torch.rand(steps.shape, generator=generator) - 1.0).to(steps.device)


def _copies(block: list[Quantizer]) -> Steps:
    return [quantizer.step.detach().clone() for quantizer in block]


def _set(block: list[Quantizer], steps: Steps) -> None:
    with torch.no_grad():
        for quantizer, step in zip(block, steps, strict=True):
            quantizer.step.copy_(step)
