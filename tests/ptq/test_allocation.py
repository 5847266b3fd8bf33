"""Bits for each layer: the best allocation there is, and what cannot be reached."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.errors import RecipeError
from ofqctl.ptq.allocation import allocate

WIDTHS = (2, 3, 4, 8)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.floats(0.0, 10.0), min_size=4, max_size=4), st.integers(1, 100)), min_size=1, max_size=4
    ),
    st.floats(0.0, 1.0),
)
def test_no_other_allocation_within_the_budget_does_less_damage(layers, share):
    damage = {str(i): dict(zip(WIDTHS, values, strict=True)) for i, (values, _) in enumerate(layers)}
    cost = {str(i): {b: float(b * weights) for b in WIDTHS} for i, (_, weights) in enumerate(layers)}
    total = sum(weights for _, weights in layers)
    budget = total * (2 + 6 * share)
    found = allocate(damage, cost, budget, where="--target-bits", unit="bits")
    assert sum(cost[name][bits] for name, bits in found.items()) <= budget * (1 + 1e-6)
    best = min(
        sum(damage[name][bits] for name, bits in zip(damage, chosen, strict=True))
        for chosen in product(WIDTHS, repeat=len(damage))
        if sum(cost[name][bits] for name, bits in zip(damage, chosen, strict=True)) <= budget
    )
    assert sum(damage[name][bits] for name, bits in found.items()) <= best + 1e-6


def test_a_budget_below_every_allocation_is_refused_with_the_range():
    with pytest.raises(RecipeError, match=r"--target-bits: no allocation reaches 1\.9 bits; from 2 to 8"):
        allocate({"a": {2: 1.0, 8: 0.0}}, {"a": {2: 2.0, 8: 8.0}}, 1.9, where="--target-bits", unit="bits")


def test_a_budget_above_every_allocation_takes_what_does_least_damage():
    damage = {"a": {2: 1.0, 8: 0.0}, "b": {2: 0.1, 8: 0.2}}
    cost = {name: {2: 2.0, 8: 8.0} for name in damage}
    assert allocate(damage, cost, 100.0, where="x", unit="bits") == {"a": 8, "b": 2}
