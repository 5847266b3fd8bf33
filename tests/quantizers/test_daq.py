"""Distance-aware quantization: exactly rounded values, with the gradients of the soft form written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.export.arithmetic import operand_of, weight_of
from ofqctl.quantizers import build_quantizer
from ofqctl.quantizers.daq import slope
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.plan import quantizer_plan


def soft(between, gamma, sigma):
    """The kernel soft argmax between two levels 0 and 1, with a temperature that is a constant."""
    levels = torch.tensor([0.0, 1.0]).double()
    nearest = between.detach().round()
    scores = [torch.exp(-(between - q).abs()) * torch.exp(-((q - nearest) ** 2) / sigma**2) for q in levels]
    temperature = (gamma / (scores[0] - scores[1]).abs()).detach()
    shares = torch.stack([temperature * score for score in scores]).softmax(0)
    outward = 1.0 / (math.exp(gamma) - 1.0)
    return shares[0] * (levels[0] - outward) + shares[1] * (levels[1] + outward)


def by_hand(x, step, bits, signed, gamma, sigma, reach):
    """The soft value, from levels 0 .. 2**bits - 1 between two bounds."""
    high = 2**bits - 1
    middle = high / 2 if signed else 0.0
    in_levels = (x / (step * reach) + middle).clamp(0, high)
    below = in_levels.detach().floor().clamp(max=high - 1)
    return step * (below + soft(in_levels - below, gamma, sigma) - middle)


def started(bits, signed, **options):
    torch.manual_seed(bits)
    x = torch.randn(5, 200)
    x = x if signed else x.abs()
    quantizer = build_quantizer(quantizer_plan(method="daq", bits=bits, step_shape=(5, 1), signed=signed, **options))
    quantizer.observe(x)
    quantizer.finish()
    return quantizer, x


@pytest.mark.parametrize("options", [{}, {"sigma": 2.0}, {"gamma": 0.5, "reach": 2.0}], ids=str)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_value_and_every_gradient_are_those_of_the_soft_form(bits, signed, options):
    quantizer, x = started(bits, signed, **options)
    quantizer.step.data.mul_(0.8)
    upstream, leaf = torch.randn_like(x), x.clone().requires_grad_()
    value = quantizer(leaf)
    value.backward(upstream)
    constants = {"gamma": 2.0, "sigma": 1.0, "reach": 3.75} | options
    constants["reach"] = constants["reach"] if signed and bits == 1 else 1.0
    wide, step = x.double().requires_grad_(), quantizer.step.detach().double().requires_grad_()
    expected = by_hand(wide, step, bits, signed, **constants)
    expected.backward(upstream.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.double(), wide.grad, rtol=1e-5, atol=1e-6 * 4**bits)  # of rounding
    scaled = step.grad * (max(1, quantizer.range.high) * x[0].numel()) ** -0.5
    torch.testing.assert_close(quantizer.step.grad.double(), scaled, rtol=1e-4, atol=1e-4)
    assert torch.equal(value.detach(), quantizer.encode(x).decode())


@settings(deadline=None, max_examples=50)
@given(st.floats(0.1, 8.0), st.floats(0.3, 5.0), st.floats(0.001, 0.499))
def test_the_slope_is_that_of_the_soft_form_and_grows_towards_the_threshold(gamma, sigma, distance):
    between = torch.tensor(distance).double().requires_grad_()
    value = soft(between, gamma, sigma)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-9)
    here, closer = slope(torch.tensor([distance, 0.9 * distance]).double(), gamma, sigma)
    assert here.item() == pytest.approx(between.grad.item(), rel=1e-6)
    assert closer < here


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_signed_points_lie_evenly_around_zero_and_unsigned_ones_from_zero_on(bits):
    high = 2**bits - 1
    grid = started(bits, True)[0].grid
    assert grid.points(grid.range.all()).tolist() == [code - high / 2 for code in range(high + 1)]
    grid = started(bits, False)[0].grid
    assert grid.points(grid.range.all()).tolist() == list(range(high + 1))


@pytest.mark.parametrize("method", ["daq", "lsq"])
@pytest.mark.parametrize("bits", [1, 2])
def test_with_shifts_the_grid_starts_centred_where_the_error_is_least(method, bits):
    x = torch.randn(64, 5, 8) + 3.0 * torch.arange(8)
    options = {"start": "mse"} if method == "lsq" else {}
    plan = quantizer_plan(method=method, bits=bits, step_shape=(5, 1), shift_shape=(8,), **options)
    quantizer = build_quantizer(plan)
    quantizer.observe(x)
    quantizer.finish()
    error = (quantizer.encode(x).decode() - x).var().item()
    assert error < {1: 0.39, 2: 0.13}[bits]  # two levels of a normal variable: 0.3634, four: 0.1188


def test_beyond_the_reach_of_one_bit_weights_have_no_gradient_and_within_they_have():
    quantizer, x = started(1, True)
    leaf = x.clone().requires_grad_()
    quantizer(leaf).sum().backward()
    beyond = leaf.detach().abs() > 0.5 * 3.75 * quantizer.step
    assert torch.equal(leaf.grad == 0, beyond)
    assert 0 < beyond.float().mean() < 0.01


def test_weights_of_one_bit_are_exported_as_signs():
    quantizer, x = started(1, True)
    exported = weight_of("w", quantizer.encode(x))
    assert (exported.levels + exported.zero).tolist() == [-1, 1]
    assert exported.obstacle is None and len(exported.packed) == x.numel() // 8
    assert torch.equal(torch.from_numpy(exported.values()).float(), quantizer(x).detach())


@pytest.mark.parametrize("step_shape", [(5, 1), (6,), ()])
def test_half_steps_that_differ_from_row_to_row_stay_with_the_codes(step_shape):
    plan = quantizer_plan(method="daq", bits=1, step_shape=step_shape, shift_shape=(6,))
    quantizer = build_quantizer(plan)
    operand = operand_of("x", quantizer)
    rows = len(step_shape) > 1
    assert operand.rest == (0.5 if rows else 0.0)
    assert operand.after.shape == (6,) and operand.after[0] == (0.0 if rows else 0.5)


def test_activations_prefer_the_nearer_point_less_by_default():
    recipe = load("daq/vit_w1a1")
    assert (recipe.weights.sigma, recipe.activations.sigma) == (1.0, 2.0)
