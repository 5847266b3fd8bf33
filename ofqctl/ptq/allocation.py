"""Mixed precision: choose the bits of each layer so that the sum of sensitivities is minimal within a budget.

Every layer takes exactly one of the candidate widths, and the sum of the costs must not exceed the budget. This is an
integer linear program, solved exactly by HiGHS.
"""

from collections.abc import Mapping

import numpy as np

from ofqctl.errors import RecipeError


def allocate(
    damage: Mapping[str, Mapping[int, float]],
    cost: Mapping[str, Mapping[int, float]],
    budget: float,
    *,
    where: str,
    unit: str,
) -> dict[str, int]:
    """Choose a width for each layer, with the least total damage among all choices whose cost is within the budget.

    Args:
        damage: Damage of each layer at each candidate width.
        cost: Cost of each layer at each candidate width, in ``unit``.
        budget: Largest sum of the costs, in ``unit``.
        where: The option that set the budget, for an error message.
        unit: Unit of the costs, for an error message.

    Returns:
        Bits by layer.

    Raises:
        RecipeError: No allocation is within the budget; the message gives the range that can be reached.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    check_reachable(cost, budget, where=where, unit=unit)
    choices = [(name, bits) for name, widths in damage.items() for bits in sorted(widths)]
    layers = list(damage)
    one_each = np.array([[float(name == layer) for name, _ in choices] for layer in layers])
    costs = np.array([[cost[name][bits] for name, bits in choices]])
    found = milp(
        np.array([damage[name][bits] for name, bits in choices]),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(costs, -np.inf, budget)],
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
    )
    assert found.x is not None, found.message
    return {name: bits for (name, bits), taken in zip(choices, found.x, strict=True) if taken > 0.5}


def check_reachable(cost: Mapping[str, Mapping[int, float]], budget: float, *, where: str, unit: str) -> None:
    """Reject a budget below the sum of the smallest costs; arguments and error as in ``allocate``."""
    lowest = sum(min(costs.values()) for costs in cost.values())
    highest = sum(max(costs.values()) for costs in cost.values())
    if budget < lowest * (1 - 1e-9):
        raise RecipeError(
            f"{where}: no allocation reaches {budget:.10g} {unit}; from {lowest:.10g} to {highest:.10g} can be reached",
            hint="--candidates with fewer bits reach lower",
        )
