"""Evol-Q (Frumkin et al., ICCV 2023): evolutionary search over weight steps, block by block, last block first.

All codes are held, so that a step moves the weights in proportion and the loss follows smoothly. Of all passes the one
is kept whose loss is least on calibration images that the search never saw. Neither sees images that an earlier step
was fitted to, if there are others: on those the loss is next to nothing, and says nothing.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ofqctl.errors import RecipeError
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Batches, Part, find_units, rebatched
from ofqctl.recipe.refining import EvolutionStep

_IMAGES_COMPARED = 16  # in one contrast; a batch of the loss
Factors = list[Tensor]


@dataclass
class _Gene:
    """A weight whose codes are held, and the steps it started with."""

    site: WeightSite
    start: Encoded

    def take(self, factor: Tensor) -> None:
        """Have the steps of the start times ``factor``."""
        self.site.fix_codes(replace(self.start, step=self.start.step * factor))

    def settle(self) -> None:
        """Have a latent weight again, with these very codes and steps."""
        codes, quantizer = self.site.fixed_codes, self.site.weight_quantizer
        assert codes is not None and quantizer is not None
        quantizer.restore(codes)
        self.site.release_codes(for_this_quantizer=True)


Block = list[_Gene]


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
    """Search the steps of every quantized weight, by factors of those it has."""
    images = _unseen(task)
    kept_out = max(1, round(step.held_out * len(images)))
    searched, held_out = range(len(images) - kept_out), range(len(images) - kept_out, len(images))
    blocks = _blocks(task)
    with torch.no_grad():
        logits = [task.original(batch) for batch in images]
    score = _Score(task, images, logits, lambda ours, theirs: distance(ours, theirs, step))
    draws = random.Random(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    factors = [[_ones(gene, step) for gene in block] for block in blocks]
    for block, start in zip(blocks, factors, strict=True):
        _set(block, start)
    loss, held = score.on(searched), score.on(held_out)
    curve = {"searched": [loss], "held_out": [held]}
    best, best_factors = held, list(factors)
    for number in range(step.passes):
        for done, place in enumerate(reversed(range(len(blocks)))):
            task.progress("evolq", number * len(blocks) + done, step.passes * len(blocks))
            if task.clock.over:
                break
            population = [(loss, factors[place])] * step.population
            loss, factors[place] = _search(blocks[place], population, score, searched, step, draws, generator)
        held = score.on(held_out)
        curve["searched"].append(loss)
        curve["held_out"].append(held)
        if held < best:
            best, best_factors = held, list(factors)
        if task.clock.over:
            task.notes.append(f"evolq: the time budget ended it in pass {number + 1} of {step.passes}")
            break
    task.progress("evolq", step.passes * len(blocks), step.passes * len(blocks))
    for block, found in zip(blocks, best_factors, strict=True):
        _set(block, found)
        for gene in block:
            gene.settle()
    images.delete()
    task.figures["evolq"] = curve


def _unseen(task: Task) -> Batches:
    """The images that nothing was fitted to, or all if there are hardly any; in batches to compare."""
    fitted = task.fitted if task.images.images - task.fitted >= 2 else 0
    count = task.images.images - fitted
    if count < 2:
        raise RecipeError("ptq: evolq needs at least 2 calibration images", hint="--calib-images N")
    if task.fitted and not fitted:
        task.notes.append(
            f"evolq: an earlier step was fitted to all {task.fitted} calibration images, so that the search has little "
            "to go by; reconstruct's `share` leaves some"
        )
    return rebatched(Part(task.images, fitted), min(_IMAGES_COMPARED, count // 2), task.images.beside("compared"))


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


def _blocks(task: Task) -> list[Block]:
    """The quantized weights, by unit; those outside of every unit come first."""
    units = [unit.name for unit, _ in find_units(task.original, task.plan, task.images[0][:2])]
    blocks: dict[str, Block] = {name: [] for name in ("", *units)}
    for name, site in weight_sites(task.model):
        unit = next((u for u in units if name.startswith(f"{u}.")), "")
        encoded = site.encode_weight()
        assert encoded is not None
        blocks[unit].append(_Gene(site, encoded))
    return [block for block in blocks.values() if block]


def _search(
    block: Block,
    population: list[tuple[float, Factors]],
    score: _Score,
    batches: range,
    step: EvolutionStep,
    draws: random.Random,
    generator: torch.Generator,
) -> tuple[float, Factors]:
    """A few generations of one block's factors; sets the fittest and returns it with its loss."""
    for _ in range(step.cycles):
        drawn = draws.sample(population, min(step.tournament, len(population)))
        _, parent = min(drawn, key=lambda individual: individual[0])
        child = [factor * _draw(factor, step.epsilon, generator) for factor in parent]
        _set(block, child)
        population.append((score.on(batches), child))
        del population[max(range(len(population)), key=lambda i: population[i][0])]
    loss, fittest = min(population, key=lambda individual: individual[0])
    _set(block, fittest)
    return loss, fittest


def _ones(gene: _Gene, step: EvolutionStep) -> Tensor:
    """The factors of a weight before the search: one for all of its steps, or one each."""
    steps = gene.start.step
    return torch.ones_like(steps if step.granularity == "channel" else steps.flatten()[0])


def _draw(factor: Tensor, epsilon: float, generator: torch.Generator) -> Tensor:
    """Uniform in ``1 - epsilon .. 1 + epsilon``, like ``factor``."""
    return 1.0 + epsilon * (2.0 * torch.rand(factor.shape, generator=generator) - 1.0).to(factor.device)


def _set(block: Block, factors: Factors) -> None:
    for gene, factor in zip(block, factors, strict=True):
        gene.take(factor)
