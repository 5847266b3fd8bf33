"""Mixed precision: a recipe with bits for every layer, allocated on measured sensitivities."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Any, Literal

import numpy as np
from torch import nn

from ofqctl.artifact import serialize
from ofqctl.convert import convert, make_plan, weight_site
from ofqctl.errors import RecipeError
from ofqctl.export import product_seconds
from ofqctl.progress import Progress
from ofqctl.ptq import Batches, calibrate, calibrate_weights
from ofqctl.ptq.allocation import allocate, check_reachable
from ofqctl.ptq.sensitivity import sensitivities
from ofqctl.ptq.units import Part, rebatched
from ofqctl.recipe import Override, Recipe

Size = tuple[int, int, int]
Cost = Literal["bits", "latency"]

_MEASURED_ON = 32  # images; a layer's rank changes little with more


@dataclass(frozen=True)
class Target:
    """What the weights may come to; one of the two is given.

    Attributes:
        bits: Largest average over all weights of layers that are neither first nor last; or, if latency is the cost,
            the layers' products may together take as long as they do at so many bits.
        size: Largest size of ``model.safetensors`` in bytes.
        candidates: Widths that a layer can get, two or more.
        cost: What ``bits`` bounds.
    """

    bits: float | None = None
    size: int | None = None
    candidates: tuple[int, ...] = (2, 3, 4, 5, 6, 8)
    cost: Cost = "bits"


def mix_precision(
    model: nn.Module, recipe: Recipe, target: Target, size: Size, images: Batches, progress: Progress
) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the weights of every layer at the width that hurts least within the target.

    Args:
        model: In float, on the device to compute on; left as it is.
        recipe: What to do beside; activations are left out of the measurement.
        target: What the weights may come to.
        size: (3, H, W).
        images: Normalized calibration images; sensitivities take the first 32.
        progress: Told what goes on.

    Returns:
        The recipe, whose ``layers`` say the bits, and the figures behind it.

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
            damage[found.module][bits] = found.kl
        if limit is None:
            progress(f"time the products at {bits} bits", 0, None)
            times = product_seconds(converted.cpu(), size)
            for name in names:
                seconds[name][bits] = times.get(name, 0.0)  # in float whatever the bits
    few.delete()
    limit = limit or _limit_of_latency(target, seconds)
    chosen = allocate(damage, limit.cost, limit.budget, where=limit.where, unit=limit.unit)
    overrides = tuple(_override(recipe, name, width) for name, width in chosen.items())
    return recipe.model_copy(update={"layers": (*recipe.layers, *overrides)}), {
        "bits": chosen,
        "average_bits": sum(chosen[name] * n for name, n in numbers.items()) / sum(numbers.values()),
        "sensitivities": {name: {str(b): kl for b, kl in widths.items()} for name, widths in damage.items()},
        "cost": {
            "unit": limit.unit,
            "budget": limit.budget,
            "spent": sum(limit.cost[name][bits] for name, bits in chosen.items()),
            "layers": {name: {str(b): c for b, c in costs.items()} for name, costs in limit.cost.items()},
        },
    }


@dataclass(frozen=True)
class _Limit:
    """What an allocation may cost.

    Attributes:
        cost: Of each layer at each width.
        budget: Largest sum.
        where: The option that set it.
        unit: What costs are counted in.
    """

    cost: Mapping[str, Mapping[int, float]]
    budget: float
    where: str
    unit: str


def _limit_of_bits(target: Target, numbers: Mapping[str, int], fixed: int) -> _Limit:
    """Average bits, or bytes of the file.

    Raises:
        RecipeError: No allocation is within it.
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
    """What all layers take at the target's bits, between two candidates in proportion."""
    assert target.bits is not None
    widths = sorted(target.candidates)
    sums = [1e3 * sum(times[bits] for times in seconds.values()) for bits in widths]
    cost = {name: {bits: 1e3 * s for bits, s in times.items()} for name, times in seconds.items()}
    return _Limit(cost, float(np.interp(target.bits, widths, sums)), "--target-bits", "ms")


def _weigh(model: nn.Module, recipe: Recipe, bits: int, names: list[str], size: Size) -> tuple[dict[str, int], int]:
    """Number of weights of each open layer, and bytes of the file beside their codes."""
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
    """Modules whose weights have the bits of the recipe's ``weights``: neither first, last nor an exception."""
    one, other = ({n: m.weight.bits for n, m in make_plan(model, r, size).modules.items() if m.weight} for r in recipes)
    names = [name for name, bits in one.items() if other[name] != bits]
    if not names:
        raise RecipeError("mixed precision: the recipe's `layers` set the bits of every layer already")
    return names


def _override(recipe: Recipe, name: str, bits: int) -> Override:
    """The exception that gives one planned module its bits, with all else as the recipe has it there."""
    target = name.replace(".products.v_proj", ".qkv")  # the projection that a merged block's value comes from
    weights = recipe.weights
    for exception in recipe.layers:
        if exception.weights is not None and fnmatchcase(target, exception.target):
            weights = exception.weights
    return Override(target=target, weights=weights.model_copy(update={"bits": bits}))
