"""The two stages of ERQ against what a direct computation gives."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.grids import CodeRange, IntegerGrid
from ofqctl.ptq.erq import refine_rounding

GRID = IntegerGrid(CodeRange(-4, 3))


def error_of(codes, weights, step, moments):
    error = step * codes - weights
    return ((error @ moments) * error).sum(dim=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_refined_codes_are_neighbours_on_the_grid_and_never_worse(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 12, generator=generator).double() @ torch.randn(12, 12, generator=generator).double()
    moments = inputs.T @ inputs / 40
    weights = torch.randn(5, 12, generator=generator).double()
    step = torch.full((5, 12), 0.4).double()
    nearest = (weights / step).round().clamp(-4, 3)
    codes = refine_rounding(weights, step, GRID, moments, rounds=100)
    assert bool((codes >= -4).all() and (codes <= 3).all())
    assert bool(((codes - weights / step).abs() < 1.0001)[(weights / step).abs() <= 3].all())
    before, after = error_of(nearest, weights, step, moments), error_of(codes, weights, step, moments)
    assert bool((after <= before + 1e-12).all())


def test_no_single_flip_would_lower_the_error_further():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(30, 6, generator=generator).double() @ torch.randn(6, 6, generator=generator).double()
    moments = inputs.T @ inputs / 30
    weights = torch.randn(3, 6, generator=generator).double()
    step = torch.full((3, 6), 0.5).double()
    codes = refine_rounding(weights, step, GRID, moments, rounds=100)
    best = error_of(codes, weights, step, moments)
    for row, column in product(range(3), range(6)):
        flipped = codes.clone()
        flipped[row, column] += torch.sign(weights[row, column] - 0.5 * codes[row, column])
        if flipped.abs().max() <= 3:
            assert error_of(flipped, weights, step, moments)[row] >= best[row] - 1e-12


def test_rounds_bound_the_flips_of_a_row():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(30, 20, generator=generator).double() + 2.0  # inputs that agree: roundings are to cancel
    moments = inputs.T @ inputs / 30
    weights = torch.rand(4, 20, generator=generator).double()
    step = torch.full((4, 20), 0.6).double()
    nearest = (weights / step).round()
    for rounds in (0, 1, 3):
        codes = refine_rounding(weights, step, GRID, moments, rounds=rounds)
        assert int((codes != nearest).sum(dim=1).max()) <= rounds


@pytest.mark.parametrize("ridge", [1e-6, 0.05])
def test_regression_on_activation_errors_gives_the_normal_equations(quantized, ridge):
    from ofqctl.ptq.erq import _reduce_activation_error
    from ofqctl.ptq.layer_inputs import Moments

    layer = quantized().model.blocks[0].mlp.fc1
    generator = torch.Generator().manual_seed(2)
    exact = torch.randn(500, 48, generator=generator)
    rounded = exact + 0.2 * torch.randn(500, 48, generator=generator)
    ones = torch.ones(500, 1)
    x, xq = torch.cat([exact, ones], 1).double(), torch.cat([rounded, ones], 1).double()
    before = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double()
    own = xq.T @ xq / 500
    _reduce_activation_error(layer, Moments(own, x.T @ xq / 500), ridge)
    strength = ridge * own.diagonal().mean() * 500
    padded = torch.cat([xq, strength.sqrt() * torch.eye(49).double()])
    wanted = torch.cat([x @ before.T, strength.sqrt() * before.T])
    expected = torch.linalg.lstsq(padded, wanted).solution.T
    found = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().double()
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_few_massive_rows_do_not_decide_what_suits_the_others(quantized):
    from ofqctl.ptq.erq import ERQ, _reduce_activation_error, _reduce_weight_error
    from ofqctl.ptq.layer_inputs import moments_of

    generator = torch.Generator().manual_seed(4)
    exact = torch.randn(500, 48, generator=generator)
    exact[:, 0] *= torch.where(torch.rand(500, generator=generator) < 0.01, 1000.0, 1.0)
    step = exact.abs().mean() / 2
    rounded = (exact / step).round() * step
    ones = torch.ones(500, 1)
    x, xq = torch.cat([exact, ones], 1), torch.cat([rounded, ones], 1)
    ordinary = exact[:, 0].abs() < 10
    errors = []
    for weighing in (0.0, 0.5):
        layer = quantized(assignments=["weights.bits=3"]).model.blocks[0].mlp.fc1
        wanted = x @ torch.cat([layer.weight, layer.bias[:, None]], 1).detach().T
        settings = ERQ(weighing=weighing)
        moments = moments_of([(x[:200], xq[:200]), (x[200:], xq[200:])], weighing)
        _reduce_activation_error(layer, moments, settings.ridge)
        _reduce_weight_error(layer, moments, settings)
        with torch.no_grad():
            found = xq @ torch.cat([layer.weight, layer.bias[:, None]], 1).T
        errors.append((found - wanted)[ordinary].square().mean().item())
    assert errors[1] < 0.8 * errors[0]


def test_rows_weigh_what_their_mean_square_says(quantized):
    from ofqctl.ptq.layer_inputs import moments_of

    rows = torch.tensor([[3.0, 4.0], [0.0, 0.2]])
    found = moments_of([(rows, rows / 2)], 0.5)
    weights = (1 / 12.5**0.5, 1 / 0.02**0.5)
    cross = sum(w * torch.outer(row, row / 2) for w, row in zip(weights, rows.double(), strict=True)) / 2
    assert torch.allclose(found.cross, cross, atol=1e-6)
    assert torch.allclose(found.own, cross / 2, atol=1e-6)


@pytest.mark.parametrize("weighing", [0.5, 1.0])
def test_rows_of_zeros_do_not_outweigh_all_others(weighing):
    from ofqctl.ptq.layer_inputs import moments_of

    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    rows[7] = 0.0  # a quantizer with a shift, or a grid without a point at 0, makes something of it all the same
    found = moments_of([(rows, rows + 0.1)], weighing)
    others = rows[rows.any(dim=1)]
    without = moments_of([(others, others + 0.1)], weighing)
    assert torch.allclose(found.own * 50, without.own * 49, rtol=1e-5)


def test_inputs_that_are_always_zero_cost_nothing():
    from torch import nn

    from ofqctl.layers import QuantLinear
    from ofqctl.ptq.erq import ERQ, _reduce_activation_error, _reduce_weight_error
    from ofqctl.ptq.layer_inputs import moments_of
    from ofqctl.recipe import ModulePlan, quantizer_plan

    plan = quantizer_plan(method="uniform", bits=3, step_shape=(5, 1), range="mse")
    layer = QuantLinear(nn.Linear(6, 5, bias=False), ModulePlan(kind="linear", weight=plan))
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    rows[:, -2:] = 0.0
    moments = moments_of([(rows, rows)], 0.5)
    settings = ERQ()
    _reduce_activation_error(layer, moments, settings.ridge)
    _reduce_weight_error(layer, moments, settings)
    assert bool(torch.isfinite(layer.weight).all())
