"""Learnable companding: values, gradients and thresholds as the formulas of the paper give them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.errors import RecipeError
from ofqctl.quantizers import build_quantizer
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.plan import quantizer_plan

K = 16


def curve(theta):
    """Slopes and offsets of the compressor."""
    shares = theta.softmax(0)
    return K * shares, shares.cumsum(0) - shares


def compress(v, gamma, beta):
    k = (v * K).floor().long().clamp(0, K - 1)
    return gamma[k] * (v - k / K) + beta[k], k


def by_hand(x, alpha, theta, s, upstream):
    """Value, and the published gradients of x, of alpha in each row and of theta, in float64."""
    gamma, beta = curve(theta)
    v, inside, sign = x.abs() / alpha, x.abs() < alpha, x.sign()
    g, k = compress(v.clamp(max=1), gamma, beta)
    y = (g * s).round() / s
    j = torch.searchsorted(beta, y, right=True) - 1
    value = torch.where(inside, sign * alpha * ((y - beta[j]) / gamma[j] + j / K), sign * alpha)
    of_x = upstream * inside
    of_alpha = (upstream * (value / alpha - inside * x / alpha)).sum(1, keepdim=True)
    w = torch.where(inside, upstream * sign * alpha, 0.0)
    of_gamma, of_beta = torch.zeros(K).double(), torch.zeros(K).double()
    for at, change_gamma, change_beta in (
        (k, (v - k / K) / gamma[j], 1 / gamma[j]),
        (j, -(y - beta[j]) / gamma[j] ** 2, -1 / gamma[j]),
    ):
        of_gamma.index_add_(0, at.flatten(), (w * change_gamma).flatten())
        of_beta.index_add_(0, at.flatten(), (w * change_beta).flatten())
    leaf = theta.clone().requires_grad_()
    gamma, beta = curve(leaf)
    ((gamma * of_gamma).sum() + (beta * of_beta).sum()).backward()
    return value, of_x, of_alpha, leaf.grad


def learned(bits, *, signed=True, rows=6, columns=300, sharpness=1.0, **options):
    torch.manual_seed(bits)
    x = torch.randn(rows, columns)
    x = x if signed else x.abs()
    plan = quantizer_plan(method="lcq", bits=bits, step_shape=(rows, 1), signed=signed, **options)
    quantizer = build_quantizer(plan)
    quantizer.observe(x)
    quantizer.finish()
    torch.nn.init.normal_(quantizer.theta, std=sharpness)
    return quantizer, x


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_value_and_every_gradient_are_those_of_the_formulas(bits, signed):
    quantizer, x = learned(bits, signed=signed)
    quantizer.step.data.mul_(0.8)  # values beyond the grid at every width
    upstream, s = torch.randn_like(x), quantizer.range.high
    assert s == (2 ** (bits - 1) - 1 if signed else 2**bits - 1)
    leaf = x.clone().requires_grad_()
    value = quantizer(leaf)
    value.backward(upstream)
    alpha = quantizer.step.detach().double() * s
    expected, of_x, of_alpha, of_theta = by_hand(x.double(), alpha, quantizer.theta.detach().double(), s, upstream)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), of_x.double())
    scaled = (s / x[0].numel()) ** 0.5 * of_alpha  # that of alpha / s is s times as large, and its factor 1 / s
    torch.testing.assert_close(quantizer.step.grad.double(), scaled, rtol=1e-5, atol=1e-5)
    of_theta = (s / x.numel()) ** 0.5 * of_theta
    torch.testing.assert_close(quantizer.theta.grad.double(), of_theta, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.booleans(), st.integers(0, 999), st.sampled_from([0.0, 1.0, 4.0]))
def test_codes_round_in_the_companded_domain_and_positions_agree(bits, signed, seed, sharpness):
    quantizer, x = learned(bits, signed=signed, rows=1, columns=64, sharpness=sharpness)
    torch.manual_seed(seed)
    torch.nn.init.normal_(quantizer.theta, std=sharpness)
    grid, s = quantizer.grid, quantizer.range.high
    marks = grid.marks
    assert (marks.diff() > 0).all() and marks[-1] == s
    codes = grid.range.all()
    assert torch.equal(grid.nearest(grid.table.detach()), codes.float())
    torch.testing.assert_close(grid.position(marks), torch.arange(2 * codes[0], 2 * s + 1) / 2, rtol=0, atol=1e-3)
    gamma, beta = curve(quantizer.theta.detach().double())
    in_steps = (x.double() / quantizer.step.detach().double()).clamp(-s, s)
    compressed = s * compress(in_steps.abs() / s, gamma, beta)[0]
    away = ((compressed % 1) - 0.5).abs() > 1e-3
    expected = (in_steps.sign() * compressed.round())[away]
    assert torch.equal(quantizer.encode(x).codes[away].double(), expected)


@pytest.mark.parametrize("bits", [2, 4])
def test_it_starts_as_an_even_grid_at_the_least_error(bits):
    quantizer, x = learned(bits, sharpness=0.0)
    grid = quantizer.grid
    assert torch.equal(grid.table, grid.range.all().float())
    torch.testing.assert_close(grid.thresholds, grid.range.all()[:-1] + 0.5)
    error = (quantizer(x) - x).square().mean()
    for factor in (0.8, 1.25):
        with torch.no_grad():
            quantizer.step.mul_(factor)
            assert (quantizer(x) - x).square().mean() > error
            quantizer.step.div_(factor)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 4), st.booleans(), st.integers(0, 999), st.sampled_from([0.5, 3.0, 30.0]))
def test_requantized_points_are_distinct_integers_of_8_bits_close_to_the_others(bits, signed, seed, sharpness):
    quantizer, x = learned(bits, signed=signed, rows=1, columns=64, requantize=True)
    plain, _ = learned(bits, signed=signed, rows=1, columns=64)
    torch.manual_seed(seed)
    torch.nn.init.normal_(quantizer.theta, std=sharpness)
    plain.theta.data.copy_(quantizer.theta)
    grid = quantizer.grid
    integers = grid.on_integers()
    assert integers is not None and (integers.levels.diff() > 0).all() and integers.levels[-1] <= 255
    assert (grid.marks.diff() > -1e-5).all()
    half = 0.5 * max(1 / 16, grid.range.high / 120)
    assert ((grid.table - plain.grid.table).abs() <= half).all()
    assert torch.equal(quantizer(x), quantizer.encode(x).decode())


def test_the_curve_learns_where_points_lower_the_error():
    quantizer, x = learned(3, sharpness=0.0)
    values = torch.tensor([-1.0, -0.35, -0.15, 0.0, 0.15, 0.35, 1.0])[torch.randint(7, x.shape)] + 0.01 * x
    quantizer.observe(values)
    quantizer.finish()
    before = (quantizer(values) - values).square().mean().item()
    optimizer = torch.optim.Adam([quantizer.theta, quantizer.step], lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (quantizer(values) - values).square().mean().backward()
        optimizer.step()
    assert (quantizer(values) - values).square().mean().item() < 0.3 * before


def test_widths_that_it_cannot_have_are_refused_with_the_reason():
    for assignments, told in (
        (["weights.bits=1"], "weights: lcq has 2-8 bits: at 1 bit there is no point between"),
        (["activations.bits=5"], "activations: lcq with requantize has up to 4 bits"),
    ):
        with pytest.raises(RecipeError, match=told):
            load("lcq/vit_w3a3", assignments)
    assert load("lcq/vit_w3a3", ["weights.bits=32", "activations.bits=8", "activations.requantize=false"])
