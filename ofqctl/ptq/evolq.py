"""Evol-Q: evolutionary search over grid steps (Frumkin et al., ICCV 2023, arXiv 2308.10814).

The grid steps of weights are varied at random, block by block, last first, and what lowers a contrastive loss on
calibration images is kept. It comes after another stage, to compare with; it takes long for what it gains.

All codes stay fixed, so that weights change in proportion to their grid step and the loss changes smoothly. The pass
with the lowest loss on held-out calibration images is kept. Search and selection avoid images that an earlier stage was
fitted to, if enough others are left: on fitted images the loss is close to 0 and not informative.
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
from ofqctl.ptq.divergence import Measure, divergence, measure_of
from ofqctl.ptq.replay import Replay
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Part, find_units, rebatched
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

_IMAGES_COMPARED = 16  # largest number of images that one value of the loss compares
_FEWEST_COMPARED = 2  # the contrastive loss of a single image is always 0
Factors = list[Tensor]


class EvolQ(Frozen):
    """Evolutionary search over the grid steps of all weights (Evol-Q), block by block.

    Attributes:
        passes: Number of passes over all blocks.
        population: Number of candidates kept for each block.
        cycles: Number of children for each block in each pass.
        tournament: Number of candidates drawn for each child; the fittest of them is the parent.
        epsilon: Largest relative change of a grid step from parent to child; each child draws a share of it as its own
            limit.
        granularity: What shares a factor: all grid steps of a weight (``tensor``), or none (``channel``).
        loss: Loss between the outputs of the quantized and the float model; ``kl`` of embeddings is their relative
            squared error.
        temperature: Temperature of the similarities (``infonce``) or of the logits (``kl``).
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
    """A weight with fixed codes, and its codes and grid steps at the start of the search."""

    site: WeightSite
    start: Encoded

    def take(self, factor: Tensor) -> None:
        """Set the grid steps to those of the start times ``factor``."""
        self.site.fix_codes(replace(self.start, step=self.start.step * factor))

    def settle(self) -> None:
        """Go back to a latent weight, with the same codes and grid steps."""
        codes, quantizer = self.site.fixed_codes, self.site.weight_quantizer
        assert codes is not None and quantizer is not None
        quantizer.restore(codes)
        self.site.release_codes(for_this_quantizer=True)


@dataclass
class _Block:
    """The weights that are searched together: those of one unit, or those outside of every unit.

    Attributes:
        genes: The weights.
        preceding: Number of units that are computed before this one.
    """

    genes: list[_Gene]
    preceding: int

    def take(self, factors: Factors) -> None:
        """Set the factors, one for each weight."""
        for gene, factor in zip(self.genes, factors, strict=True):
            gene.take(factor)


@dataclass
class _Score:
    """Computes the loss of the model in its current state."""

    replay: Replay
    outputs: list[Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]

    def on(self, batches: range, replayed: int = 0) -> float:
        """Mean loss over the images of some batches.

        Args:
            batches: Numbers of the batches.
            replayed: Number of units, counted from the first, that return recorded outputs instead of computing.
        """
        losses = [
            float(self.loss(self.replay.run(i, replayed), self.outputs[i])) * len(self.outputs[i]) for i in batches
        ]
        return sum(losses) / sum(len(self.outputs[i]) for i in batches)


@dataclass
class _EvolutionarySearch:
    """Searches the factors of one block at a time."""

    settings: EvolQ
    score: _Score
    batches: range
    draws: random.Random
    generator: torch.Generator

    def improve(self, block: _Block, loss: float, factors: Factors) -> tuple[float, Factors]:
        """Search from ``factors``, whose loss is ``loss``; set and return the fittest factors, with their loss."""
        population = [(loss, factors)] * self.settings.population
        for _ in range(self.settings.cycles):
            drawn = self.draws.sample(population, min(self.settings.tournament, len(population)))
            _, parent = min(drawn, key=lambda individual: individual[0])
            child = self._child_of(parent)
            block.take(child)
            population.append((self.score.on(self.batches, block.preceding), child))
            del population[max(range(len(population)), key=lambda i: population[i][0])]
        loss, fittest = min(population, key=lambda individual: individual[0])
        block.take(fittest)
        return loss, fittest

    def _child_of(self, parent: Factors) -> Factors:
        """Every factor, randomly changed by at most a share of ``epsilon`` that is drawn once for the child."""
        reach = self.settings.epsilon * self.draws.random()
        return [factor * (1.0 + reach * self._change(factor)) for factor in parent]

    def _change(self, factor: Tensor) -> Tensor:
        """Uniform random numbers in -1 .. 1, in the shape of ``factor``."""
        return (2.0 * torch.rand(factor.shape, generator=self.generator) - 1.0).to(factor.device)


@PTQ_STAGES.register("evolq", EvolQ)
def evolve(task: Task, settings: EvolQ) -> None:
    """Search factors for the grid steps of every quantized weight."""
    unseen = _unfitted(task)
    sizes = split(unseen.images, settings.held_out)
    images = rebatched(unseen, chain(*sizes), task.images.beside("compared"))
    searched, held_out = range(len(sizes[0])), range(len(sizes[0]), len(images))
    counts = {"searched": sum(sizes[0]), "held_out": sum(sizes[1])}
    measure = measure_of(task.original)
    units = [unit.name for unit, _ in find_units(task.original, task.plan, task.images[0][:2])]
    blocks = _blocks(task, units)
    with torch.no_grad():
        outputs = [task.original(batch) for batch in images]
    replay = Replay(task.model, units, images)
    score = _Score(replay, outputs, lambda ours, theirs: distance(ours, theirs, settings, measure))
    search = _EvolutionarySearch(
        settings, score, searched, random.Random(task.seed), torch.Generator().manual_seed(task.seed)
    )
    factors = [[_ones(gene, settings) for gene in block.genes] for block in blocks]
    for block, start in zip(blocks, factors, strict=True):
        block.take(start)
    loss, held_out_loss = score.on(searched), score.on(held_out)
    curve = {"searched": [loss], "held_out": [held_out_loss]}
    best, best_factors = held_out_loss, list(factors)
    for number in range(settings.passes):
        replay.record(searched)
        for done, place in enumerate(reversed(range(len(blocks)))):
            task.progress("evolq", number * len(blocks) + done, settings.passes * len(blocks))
            if task.clock.over:
                break
            loss, factors[place] = search.improve(blocks[place], loss, factors[place])
        held_out_loss = score.on(held_out)
        curve["searched"].append(loss)
        curve["held_out"].append(held_out_loss)
        if held_out_loss < best:
            best, best_factors = held_out_loss, list(factors)
        if task.clock.over:
            task.notes.append(f"evolq: the time budget was used up in pass {number + 1} of {settings.passes}")
            break
    task.progress("evolq", settings.passes * len(blocks), settings.passes * len(blocks))
    for block, found in zip(blocks, best_factors, strict=True):
        block.take(found)
        for gene in block.genes:
            gene.settle()
    replay.delete()
    images.delete()
    task.figures["evolq"] = curve | {"images": counts}


def split(images: int, held_out: float) -> tuple[list[int], list[int]]:
    """Sizes of the batches for the search, and of the held-out batches.

    Each side gets at least 2 images, because a contrastive loss compares the images of a batch with each other. Batches
    have at most 16 images, and their sizes differ by at most one.

    Args:
        images: Number of images, >= 4.
        held_out: Share of the images to hold out, 0-1.
    """
    out = min(max(_FEWEST_COMPARED, round(held_out * images)), images - _FEWEST_COMPARED)
    return _batch_sizes(images - out), _batch_sizes(out)


def _batch_sizes(images: int) -> list[int]:
    count = math.ceil(images / _IMAGES_COMPARED)
    return [images * (i + 1) // count - images * i // count for i in range(count)]


def _unfitted(task: Task) -> Part:
    """The images that no stage was fitted to, or all images if too few are left."""
    fewest = 2 * _FEWEST_COMPARED
    fitted = task.fitted if task.images.images - task.fitted >= fewest else 0
    if task.images.images < fewest:
        raise RecipeError(f"ptq: evolq needs at least {fewest} calibration images", hint="--calib-images N")
    if task.fitted and not fitted:
        task.notes.append(
            f"evolq: an earlier stage was fitted to {task.fitted} of the {task.images.images} calibration images, so "
            "the search has little to learn from; a smaller `share` of reconstruct leaves it images"
        )
    return Part(task.images, fitted)


def distance(ours: Tensor, theirs: Tensor, settings: EvolQ, measure: Measure = "kl") -> Tensor:
    """How far the outputs of the quantized model are from those of the float model, a scalar.

    Args:
        ours: Outputs of the quantized model, (B, classes or features).
        theirs: Outputs of the float model, of the same shape.
        settings: Chooses the loss. ``infonce``: contrastive; the output for each image should be more similar to the
            float model's output for the same image than to those for other images. ``kl``: divergence of the
            predictions at the temperature, times its square; of embeddings, their relative squared error.
        measure: What the outputs are, see `measure_of`.
    """
    if settings.loss == "mse":
        return F.mse_loss(ours, theirs)
    if settings.loss == "cosine":
        return 1.0 - F.cosine_similarity(ours, theirs, dim=1).mean()
    if settings.loss == "kl":
        return divergence(ours, theirs, measure, settings.temperature)
    alike = F.normalize(ours, dim=1) @ F.normalize(theirs, dim=1).T / settings.temperature
    return F.cross_entropy(alike, torch.arange(len(ours), device=ours.device))


def _blocks(task: Task, units: list[str]) -> list[_Block]:
    """The quantized weights, grouped by unit; weights outside of all units come first."""
    blocks = {"": _Block([], 0)} | {unit: _Block([], number) for number, unit in enumerate(units)}
    for name, site in weight_sites(task.model):
        unit = next((u for u in units if f"{name}.".startswith(f"{u}.")), "")
        encoded = site.encode_weight()
        assert encoded is not None
        blocks[unit].genes.append(_Gene(site, encoded))
    return [block for block in blocks.values() if block.genes]


def _ones(gene: _Gene, settings: EvolQ) -> Tensor:
    """The initial factors of a weight, all 1: one for all of its grid steps, or one for each."""
    steps = gene.start.step
    return torch.ones_like(steps if settings.granularity == "channel" else steps.flatten()[0])
