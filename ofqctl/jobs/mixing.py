"""Mixed precision: a recipe with bits for every layer, allocated by measured sensitivities."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Literal

import numpy as np
from torch import nn

from ofqctl.artifact import serialize
from ofqctl.convert import convert, make_plan, origin_of, weight_site
from ofqctl.errors import RecipeError
from ofqctl.progress import Progress
from ofqctl.ptq import Batches, calibrate, calibrate_weights
from ofqctl.ptq.allocation import allocate, check_reachable
from ofqctl.ptq.sensitivity import sensitivities
from ofqctl.ptq.units import Part, rebatched
from ofqctl.recipe import Override, Recipe
from ofqctl.results.quantize import CostUnit, MixedPrecision, Spent

Size = tuple[int, int, int]
Cost = Literal["bits", "latency"]

_MEASURED_ON = 32  # number of images; more change the ranking of layers little


@dataclass(frozen=True)
class Target:
    """The limit for the weights; either ``bits`` or ``size`` is given.

    Attributes:
        bits: Largest average bits of the weights in layers that are neither first nor last; or, if latency is the cost,
            the bits at which the products of the layers take as long as they may take in total.
        size: Largest size of ``model.safetensors`` in bytes.
        candidates: Bit-widths that a layer can get, at least two.
        cost: What ``bits`` limits.
    """

    bits: float | None = None
    size: int | None = None
    candidates: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    cost: Cost = "bits"


def mix_precision(
    model: nn.Module, recipe: Recipe, target: Target, size: Size, images: Batches, progress: Progress
) -> tuple[Recipe, MixedPrecision]:
    """Choose the bits of every layer with the least total sensitivity within the target.

    Args:
        model: A float model, on the device to compute on; unchanged.
        recipe: The recipe for everything else; activations stay in float in the measurement.
        target: The limit for the weights.
        size: Size of one image, (3, H, W).
        images: Normalized calibration images; sensitivities use the first 32.
        progress: Called to report progress.

    Returns:
        The recipe, with the bits under ``layers``, and the figures that led to it.

    Raises:
        RecipeError: No allocation reaches the target.
    """
    recipes = {bits: _at(recipe, bits) for bits in target.candidates}
    names = _open_layers(model, list(recipes.values())[:2], size)
    numbers, fixed = _weigh(model, recipes[target.candidates[0]], target.candidates[0], names, size)
    limit = None if target.cost == "latency" else _limit_of_bits(target, numbers, fixed)
    few = rebatched(Part(images, stop=_MEASURED_ON), repeat(_MEASURED_ON), images.beside("few"))
    damage: dict[str, dict[int, float]] = {name: {} for name in names}
    seconds: dict[str, dict[int, float]] = {name: {} for name in names}
    for bits, changed in recipes.items():
        converted = copy.deepcopy(model)
        calibrate(converted, convert(converted, changed, size), few)
        for found in sensitivities(converted, names, bits, few, part="weights", progress=progress):
            damage[found.module][bits] = found.damage
        if limit is None:
            from ofqctl.export import product_seconds

            progress(f"time the products at {bits} bits", 0, None)
            times = product_seconds(converted.cpu(), size)
            for name in names:
                seconds[name][bits] = times.get(name, 0.0)  # a product in float takes the same time at any bits
    few.delete()
    limit = limit or _limit_of_latency(target, seconds)
    chosen = allocate(damage, limit.cost, limit.budget, where=limit.where, unit=limit.unit)
    overrides = tuple(_override(recipe, name, width) for name, width in chosen.items())
    return recipe.model_copy(update={"layers": (*recipe.layers, *overrides)}), MixedPrecision(
        bits=chosen,
        average_bits=sum(chosen[name] * n for name, n in numbers.items()) / sum(numbers.values()),
        sensitivities={name: {str(b): d for b, d in widths.items()} for name, widths in damage.items()},
        cost=Spent(
            unit=limit.unit,
            budget=limit.budget,
            spent=sum(limit.cost[name][bits] for name, bits in chosen.items()),
            layers={name: {str(b): c for b, c in costs.items()} for name, costs in limit.cost.items()},
        ),
    )


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


def _limit_of_bits(target: Target, numbers: Mapping[str, int], fixed: int) -> _Limit:
    """The limit of average bits, or of the file's bytes.

    Raises:
        RecipeError: No allocation is within the limit.
    """
    total = sum(numbers.values())
    if target.bits is not None:
        shares = {name: {b: b * n / total for b in target.candidates} for name, n in numbers.items()}
        limit = _Limit(shares, target.bits, "--target-bits", "bits on average")
    else:
        assert target.size is not None
        rest = fixed / len(numbers)
        sizes = {name: {b: _bytes(b, n) + rest for b in target.candidates} for name, n in numbers.items()}
        limit = _Limit(sizes, float(target.size), "--target-size", "bytes")
    check_reachable(limit.cost, limit.budget, where=limit.where, unit=limit.unit)
    return limit


def _limit_of_latency(target: Target, seconds: Mapping[str, Mapping[int, float]]) -> _Limit:
    """The limit of latency: the time of all layers at the target's bits, interpolated between candidates."""
    assert target.bits is not None
    widths = sorted(target.candidates)
    sums = [1e3 * sum(times[bits] for times in seconds.values()) for bits in widths]
    cost = {name: {bits: 1e3 * s for bits, s in times.items()} for name, times in seconds.items()}
    return _Limit(cost, float(np.interp(target.bits, widths, sums)), "--target-bits", "ms")


def _weigh(model: nn.Module, recipe: Recipe, bits: int, names: list[str], size: Size) -> tuple[dict[str, int], int]:
    """Number of weights of each open layer, and bytes of the file apart from their codes."""
    converted = copy.deepcopy(model)
    calibrate_weights(converted, convert(converted, recipe, size))
    sites = {name: weight_site(converted.get_submodule(name)) for name in names}
    numbers = {name: site.latent().numel() for name, site in sites.items() if site is not None}
    return numbers, len(serialize(converted)) - sum(_bytes(bits, n) for n in numbers.values())


def _bytes(bits: int, number: int) -> int:
    return -(-bits * number // 8)


def _at(recipe: Recipe, bits: int) -> Recipe:
    return recipe.model_copy(update={"weights": recipe.weights.model_copy(update={"bits": bits})})


def _open_layers(model: nn.Module, recipes: list[Recipe], size: Size) -> list[str]:
    """Modules with the bits of the recipe's ``weights``: neither first nor last layers nor exceptions."""
    one, other = ({n: m.weight.bits for n, m in make_plan(model, r, size).modules.items() if m.weight} for r in recipes)
    names = [name for name, bits in one.items() if other[name] != bits]
    if not names:
        raise RecipeError("mixed precision: the recipe's `layers` already set the bits of every layer")
    return names


def _override(recipe: Recipe, name: str, bits: int) -> Override:
    """The exception that sets the bits of one planned module; everything else stays as in the recipe."""
    target = origin_of(name)
    weights = recipe.weights
    for exception in recipe.layers:
        if exception.weights is not None and fnmatchcase(target, exception.target):
            weights = exception.weights
    return Override(target=target, weights=weights.model_copy(update={"bits": bits}))
