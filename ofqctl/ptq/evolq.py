"""Evol-Q (Frumkin et al., ICCV 2023): evolutionary search over weight steps, block by block, last block first.

All codes are held, so that a step moves the weights in proportion and the loss follows smoothly. Of all passes the one
is kept whose loss is least on calibration images that the search never saw. Neither sees images that an earlier step
was fitted to, if there are others: on those the loss is next to nothing, and says nothing.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ofqctl.errors import RecipeError
from ofqctl.grids import Encoded
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.ptq.replay import Replay
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Part, find_units, rebatched
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

_IMAGES_COMPARED = 16  # in one contrast, at most; a batch of the loss
_FEWEST_COMPARED = 2  # with one, the contrast is 0 whatever the model does
Factors = list[Tensor]


class EvolQ(Frozen):
    """Evolutionary search over the weight steps of all layers (Evol-Q), block by block.

    Attributes:
        passes: Over all blocks.
        population: Candidates kept for each block.
        cycles: Children for each block in each pass.
        tournament: Candidates drawn, of which the fittest is the parent.
        epsilon: Largest relative change of a step from parent to child; each child draws how much of it is its own.
        granularity: What changes by one factor: all steps of a weight (``tensor``) or each by itself (``channel``).
        loss: Between the logits of the quantized and of the float model.
        temperature: With ``infonce``: of the similarities; with ``kl``: of the logits.
        held_out: Share of the calibration images that the search never sees; they select the pass that is kept.
    """

    passes: int = Field(default=4, ge=1)
    population: int = Field(default=15, ge=1)
    cycles: int = Field(default=3, ge=1)
    tournament: int = Field(default=10, ge=1)
    epsilon: float = Field(default=0.02, gt=0.0, lt=1.0)
    granularity: Literal["tensor", "channel"] = "tensor"
    loss: Literal["infonce", "mse", "cosine", "kl"] = "infonce"
    temperature: float = Field(default=3.0, gt=0.0)
    held_out: float = Field(default=0.25, gt=0.0, lt=1.0)


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


@dataclass
class _Block:
    """What is searched at a time: the weights of one unit, or those outside of every unit.

    Attributes:
        genes: The weights.
        before: How many units are computed ahead of it.
    """

    genes: list[_Gene]
    before: int

    def take(self, factors: Factors) -> None:
        """Have these factors, one a weight."""
        for gene, factor in zip(self.genes, factors, strict=True):
            gene.take(factor)


@dataclass
class _Score:
    """The loss of the model as it is now, on some of the batches."""

    replay: Replay
    logits: list[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]

    def on(self, batches: range, replayed: int = 0) -> float:
        """Mean loss on the images of the batches with these numbers.

        Args:
            batches: Their numbers.
            replayed: So many units, from the first on, are not computed but give out what was recorded.
        """
        losses = [float(self.loss(self.replay.run(i, replayed), self.logits[i])) * len(self.logits[i]) for i in batches]
        return sum(losses) / sum(len(self.logits[i]) for i in batches)


@dataclass
class _Search:
    """Generations of factors, one block at a time."""

    step: EvolQ
    score: _Score
    batches: range
    draws: random.Random
    generator: torch.Generator

    def of(self, block: _Block, loss: float, factors: Factors) -> tuple[float, Factors]:
        """Search from ``factors``, which have this ``loss``; the block takes the fittest, returned with its own."""
        population = [(loss, factors)] * self.step.population
        for _ in range(self.step.cycles):
            drawn = self.draws.sample(population, min(self.step.tournament, len(population)))
            _, parent = min(drawn, key=lambda individual: individual[0])
            child = self._child_of(parent)
            block.take(child)
            population.append((self.score.on(self.batches, block.before), child))
            del population[max(range(len(population)), key=lambda i: population[i][0])]
        loss, fittest = min(population, key=lambda individual: individual[0])
        block.take(fittest)
        return loss, fittest

    def _child_of(self, parent: Factors) -> Factors:
        """Every factor changed by up to a share of ``epsilon`` that is drawn for all of them."""
        reach = self.step.epsilon * self.draws.random()
        return [factor * (1.0 + reach * self._change(factor)) for factor in parent]

    def _change(self, factor: Tensor) -> Tensor:
        """Uniform in -1 .. 1, like ``factor``."""
        return (2.0 * torch.rand(factor.shape, generator=self.generator) - 1.0).to(factor.device)


@PTQ_STAGES.register("evolq", EvolQ)
def evolve(task: Task, step: EvolQ) -> None:
    """Search the steps of every quantized weight, by factors of those it has."""
    unseen = _unseen(task)
    sizes = split(unseen.images, step.held_out)
    images = rebatched(unseen, chain(*sizes), task.images.beside("compared"))
    searched, held_out = range(len(sizes[0])), range(len(sizes[0]), len(images))
    counts = {"searched": sum(sizes[0]), "held_out": sum(sizes[1])}
    units = [unit.name for unit, _ in find_units(task.original, task.plan, task.images[0][:2])]
    blocks = _blocks(task, units)
    with torch.no_grad():
        logits = [task.original(batch) for batch in images]
    replay = Replay(task.model, units, images)
    score = _Score(replay, logits, lambda ours, theirs: distance(ours, theirs, step))
    search = _Search(step, score, searched, random.Random(task.seed), torch.Generator().manual_seed(task.seed))
    factors = [[_ones(gene, step) for gene in block.genes] for block in blocks]
    for block, start in zip(blocks, factors, strict=True):
        block.take(start)
    loss, held = score.on(searched), score.on(held_out)
    curve = {"searched": [loss], "held_out": [held]}
    best, best_factors = held, list(factors)
    for number in range(step.passes):
        replay.record(searched)
        for done, place in enumerate(reversed(range(len(blocks)))):
            task.progress("evolq", number * len(blocks) + done, step.passes * len(blocks))
            if task.clock.over:
                break
            loss, factors[place] = search.of(blocks[place], loss, factors[place])
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
        block.take(found)
        for gene in block.genes:
            gene.settle()
    replay.delete()
    images.delete()
    task.figures["evolq"] = curve | {"images": counts}


def split(images: int, held_out: float) -> tuple[list[int], list[int]]:
    """Sizes of the batches that are searched, and of those that are held out.

    Each side gets at least 2 images, and batches of at most 16 that differ by one image at most: a contrastive loss
    compares the images of a batch with each other, and none can be there by itself.

    Args:
        images: Number of images, >= 4.
        held_out: Share of them to hold out, 0-1.
    """
    out = min(max(_FEWEST_COMPARED, round(held_out * images)), images - _FEWEST_COMPARED)
    return _batch_sizes(images - out), _batch_sizes(out)


def _batch_sizes(images: int) -> list[int]:
    count = math.ceil(images / _IMAGES_COMPARED)
    return [images * (i + 1) // count - images * i // count for i in range(count)]


def _unseen(task: Task) -> Part:
    """The images that nothing was fitted to, or all if too few are left."""
    fewest = 2 * _FEWEST_COMPARED
    fitted = task.fitted if task.images.images - task.fitted >= fewest else 0
    if task.images.images < fewest:
        raise RecipeError(f"ptq: evolq needs at least {fewest} calibration images", hint="--calib-images N")
    if task.fitted and not fitted:
        task.notes.append(
            f"evolq: an earlier step was fitted to {task.fitted} of the {task.images.images} calibration images, so "
            "that the search has little to go by; reconstruct's `share` leaves some"
        )
    return Part(task.images, fitted)


def distance(ours: Tensor, theirs: Tensor, step: EvolQ) -> Tensor:
    """How far the logits of the quantized model are from those of the float model, a scalar.

    Args:
        ours: Of the quantized model, (B, classes).
        theirs: Of the float model, (B, classes).
        step: Says which loss. ``infonce``: each image's logits are to be more like the float model's for the same image
            than for the others. ``kl``: of the predictions at the step's temperature, times its square.
    """
    if step.loss == "mse":
        return F.mse_loss(ours, theirs)
    if step.loss == "cosine":
        return 1.0 - F.cosine_similarity(ours, theirs, dim=1).mean()
    if step.loss == "kl":
        softer, wanted = ((logits / step.temperature).log_softmax(1) for logits in (ours, theirs))
        return F.kl_div(softer, wanted, log_target=True, reduction="batchmean") * step.temperature**2
    alike = F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T / step.temperature
    return F.cross_entropy(alike, torch.arange(len(ours), device=ours.device))


def _blocks(task: Task, units: list[str]) -> list[_Block]:
    """The quantized weights, by unit; those outside of every unit come first."""
    blocks = {"": _Block([], 0)} | {unit: _Block([], number) for number, unit in enumerate(units)}
    for name, site in weight_sites(task.model):
        unit = next((u for u in units if f"{name}.".startswith(f"{u}.")), "")
        encoded = site.encode_weight()
        assert encoded is not None
        blocks[unit].genes.append(_Gene(site, encoded))
    return [block for block in blocks.values() if block.genes]


def _ones(gene: _Gene, step: EvolQ) -> Tensor:
    """The factors of a weight before the search: one for all of its steps, or one each."""
    steps = gene.start.step
    return torch.ones_like(steps if step.granularity == "channel" else steps.flatten()[0])
