"""Mixed precision: a recipe with bits for every layer, allocated by measured or estimated sensitivities."""

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Literal

import numpy as np
from torch import nn

from ofqctl.artifact import serialize
from ofqctl.convert import convert, origin_of
from ofqctl.errors import RecipeError
from ofqctl.progress import Progress
from ofqctl.ptq import Batches, calibrate, calibrate_weights
from ofqctl.ptq.allocation import allocate, check_reachable
from ofqctl.ptq.divergence import measure_of
from ofqctl.ptq.sensitivity import Measure, check_measure, damage_together, sensitivities
from ofqctl.ptq.switching import Content, Quantized, contents
from ofqctl.ptq.units import Part, rebatched
from ofqctl.recipe import Override, Plan, Recipe
from ofqctl.recipe.schema import Activations, Weights
from ofqctl.results.quantize import Allocation, CostUnit, MixedPrecision, Spent

Size = tuple[int, int, int]
Cost = Literal["bits", "latency"]

_MEASURED_ON = 32  # number of images; more change the ranking of layers little


@dataclass(frozen=True)
class Target:
    """The limits; of ``bits`` and ``size`` at most one is given, and at least one of the three.

    Attributes:
        bits: Largest average bits of the weights in layers that are neither first nor last; or, if latency is the cost,
            the bits at which the products of the layers take as long as they may take in total.
        size: Largest size of ``model.safetensors`` in bytes.
        activation_bits: Largest average bits of the activations of these layers and of attention, over the numbers in
            them.
        candidates: Bit-widths that a layer can get, at least two.
        cost: What ``bits`` limits.
        measure: How sensitivities are found.
    """

    bits: float | None = None
    size: int | None = None
    activation_bits: float | None = None
    candidates: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    cost: Cost = "bits"
    measure: Measure = "kl"

    @property
    def parts(self) -> tuple[Quantized, ...]:
        """What has a limit."""
        weights: tuple[Quantized, ...] = () if self.bits is None and self.size is None else ("weights",)
        return weights if self.activation_bits is None else (*weights, "activations")


def mix_precision(
    model: nn.Module, recipe: Recipe, target: Target, size: Size, images: Batches, progress: Progress
) -> tuple[Recipe, MixedPrecision]:
    """Choose the bits of every layer with the least total sensitivity within the target.

    Args:
        model: A float model, on the device to compute on; unchanged.
        recipe: The recipe for everything else; while weights are measured activations stay in float, and the other way
            round.
        target: The limits.
        size: Size of one image, (3, H, W).
        images: Normalized calibration images; sensitivities use the first 32.
        progress: Called to report progress.

    Returns:
        The recipe, with the bits under ``layers``, and the figures that led to it.

    Raises:
        RecipeError: No allocation reaches the target.
    """
    started = time.perf_counter()
    check_measure(target.measure, measure_of(model))
    choices = {part: _Choice(model, recipe, target, part, size) for part in target.parts}
    few = rebatched(Part(images, stop=_MEASURED_ON), repeat(_MEASURED_ON), images.beside("few"))
    found = {part: choice.allocated(few, progress) for part, choice in choices.items()}
    seconds = time.perf_counter() - started
    mixed = recipe.model_copy(update={"layers": (*recipe.layers, *_exceptions(recipe, found))})
    converted = copy.deepcopy(model)
    plan = convert(converted, mixed, size)
    calibrate(converted, plan, few)
    chosen = {part: list(allocation.bits) for part, allocation in found.items()}
    measured = damage_together(converted, plan, few, **chosen)
    few.delete()
    return mixed, MixedPrecision(
        measure=target.measure,
        unit=measure_of(model),
        weights=found.get("weights"),
        activations=found.get("activations"),
        predicted=sum(a.sensitivities[name][str(bits)] for a in found.values() for name, bits in a.bits.items()),
        measured=measured,
        seconds=round(seconds, 2),
    )


class _Choice:
    """The choice of the bits of weights, or of activations.

    Args:
        model: The float model.
        recipe: The recipe for everything else.
        target: The limits.
        part: What bits are chosen for.
        size: Size of one image.

    Raises:
        RecipeError: The recipe leaves no choice, or no allocation is within the limit.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, target: Target, part: Quantized, size: Size) -> None:
        self._model, self._target, self._part, self._size = model, target, part, size
        self._recipes = {bits: _at(recipe, part, bits) for bits in target.candidates}
        held = {bits: contents(*self._converted(bits), part, size) for bits in target.candidates}
        one, other, *_ = held.values()
        self.names = [name for name in one if one[name].bits != other[name].bits]
        if not self.names:
            raise RecipeError(f"mixed precision: the recipe's `layers` already set the bits of all {part}")
        self._held = {name: {bits: of[name] for bits, of in held.items()} for name in self.names}
        self._limit = None if part == "weights" and target.cost == "latency" else self._limit_of_bits()

    def allocated(self, images: Batches, progress: Progress) -> Allocation:
        """Measure or estimate the sensitivities, and choose."""
        damage: dict[str, dict[int, float]] = {name: {} for name in self.names}
        seconds: dict[str, dict[int, float]] = {name: {} for name in self.names}
        for bits in self._recipes:
            converted, plan = self._converted(bits, images)
            for found in sensitivities(
                converted,
                plan,
                bits,
                images,
                names=self.names,
                part=self._part,
                measure=self._target.measure,
                progress=progress,
            ):
                damage[found.module][bits] = found.damage
            if self._limit is None:
                from ofqctl.export import product_seconds

                progress(f"time the products at {bits} bits", 0, None)
                times = product_seconds(converted.cpu(), self._size)
                for name in self.names:
                    seconds[name][bits] = times.get(name, 0.0)  # a product in float takes the same time at any bits
        limit = self._limit or self._limit_of_latency(seconds)
        chosen = allocate(damage, limit.cost, limit.budget, where=limit.where, unit=limit.unit)
        return Allocation(
            bits=chosen,
            average_bits=sum(self._held[name][bits].bits for name, bits in chosen.items()) / self._numbers,
            sensitivities={name: {str(b): d for b, d in widths.items()} for name, widths in damage.items()},
            cost=Spent(
                unit=limit.unit,
                budget=limit.budget,
                spent=sum(limit.cost[name][bits] for name, bits in chosen.items()),
                layers={name: {str(b): c for b, c in costs.items()} for name, costs in limit.cost.items()},
            ),
        )

    def _converted(self, bits: int, images: Batches | None = None) -> tuple[nn.Module, Plan]:
        """The model with this part of every layer at ``bits``, calibrated if there are images; and its plan."""
        converted = copy.deepcopy(self._model)
        plan = convert(converted, self._recipes[bits], self._size)
        if images is not None:
            calibrate(converted, plan, images)
        return converted, plan

    @property
    def _numbers(self) -> int:
        """How many numbers all modules hold together."""
        return sum(next(iter(widths.values())).numbers for widths in self._held.values())

    def _limit_of_bits(self) -> "_Limit":
        """The limit of average bits, or of the file's bytes."""
        where = "--target-bits" if self._part == "weights" else "--target-abits"
        average = self._target.bits if self._part == "weights" else self._target.activation_bits
        if average is not None:
            shares = {n: {b: of.bits / self._numbers for b, of in widths.items()} for n, widths in self._held.items()}
            limit = _Limit(shares, average, where, "bits on average")
        else:
            assert self._target.size is not None
            rest = self._fixed_bytes() / len(self.names)
            sizes = {n: {b: _bytes(of) + rest for b, of in widths.items()} for n, widths in self._held.items()}
            limit = _Limit(sizes, float(self._target.size), "--target-size", "bytes")
        check_reachable(limit.cost, limit.budget, where=limit.where, unit=limit.unit)
        return limit

    def _fixed_bytes(self) -> int:
        """Bytes of the file apart from the codes of these modules."""
        bits = self._target.candidates[0]
        converted = copy.deepcopy(self._model)
        calibrate_weights(converted, convert(converted, self._recipes[bits], self._size))
        return len(serialize(converted)) - sum(_bytes(widths[bits]) for widths in self._held.values())

    def _limit_of_latency(self, seconds: Mapping[str, Mapping[int, float]]) -> "_Limit":
        """The limit of latency: the time of all layers at the target's bits, interpolated between candidates."""
        assert self._target.bits is not None
        widths = sorted(self._target.candidates)
        sums = [1e3 * sum(times[bits] for times in seconds.values()) for bits in widths]
        cost = {name: {bits: 1e3 * s for bits, s in times.items()} for name, times in seconds.items()}
        return _Limit(cost, float(np.interp(self._target.bits, widths, sums)), "--target-bits", "ms")


@dataclass(frozen=True)
class _Limit:
    """The costs of layers, and their limit.

    Attributes:
        cost: Cost of each layer at each width.
        budget: Largest sum of the costs.
        where: Option that set the budget.
        unit: Unit of the costs.
    """

    cost: Mapping[str, Mapping[int, float]]
    budget: float
    where: str
    unit: CostUnit


def _bytes(held: Content) -> int:
    return -(-held.bits // 8)


def _at(recipe: Recipe, part: Quantized, bits: int) -> Recipe:
    return recipe.model_copy(update={part: getattr(recipe, part).model_copy(update={"bits": bits})})


def _exceptions(recipe: Recipe, found: Mapping[Quantized, Allocation]) -> list[Override]:
    """The exceptions that set the bits of the planned modules; everything else stays as in the recipe."""
    changed: dict[str, dict[Quantized, Weights | Activations]] = {}
    for part, allocation in found.items():
        for name, bits in allocation.bits.items():
            target = origin_of(name)
            settings = _settings(recipe, target, part).model_copy(update={"bits": bits})
            changed.setdefault(target, {})[part] = settings
    return [Override(target=target, **parts) for target, parts in changed.items()]  # type: ignore[arg-type]


def _settings(recipe: Recipe, target: str, part: Quantized) -> Weights | Activations:
    """What the recipe says of a module that is neither the first nor the last."""
    settings: Weights | Activations = getattr(recipe, part)
    for exception in recipe.layers:
        own: Weights | Activations | None = getattr(exception, part)
        if own is not None and fnmatchcase(target, exception.target):
            settings = own
    return settings
