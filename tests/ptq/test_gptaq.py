"""Rounding column by column, against the formula computed plainly, and what it does to a model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ofqctl.layers import QuantLinear
from ofqctl.ptq import Clock
from ofqctl.ptq.gptaq import GPTAQ, round_layer
from ofqctl.ptq.layer_inputs import moments_of
from ofqctl.recipe import ModulePlan, quantizer_plan

STAGE = {"stage": "gptaq"}


def layer_of(inputs: int, outputs: int, *, bias: bool, bits: int = 3) -> QuantLinear:
    plan = quantizer_plan(method="uniform", bits=bits, step_shape=(outputs, 1), range="mse")
    layer = QuantLinear(nn.Linear(inputs, outputs, bias=bias), ModulePlan(kind="linear", weight=plan))
    layer.weight_quantizer.observe(layer.weight.detach())
    layer.weight_quantizer.finish()
    return layer


def rows_of(inputs: int, *, bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs of the float model, and the layer's own."""
    generator = torch.Generator().manual_seed(1)
    exact = torch.randn(600, inputs, generator=generator) @ torch.randn(inputs, inputs, generator=generator)
    exact = exact / inputs**0.5
    own = exact + 0.1 * torch.randn(600, inputs, generator=generator)
    ones = [torch.ones(600, 1)] if bias else []
    return torch.cat([exact, *ones], 1), torch.cat([own, *ones], 1)


def plainly(weights, bias, step, bits, exact, own, ridge, asymmetry):
    """Section 9 of the formula's notes: codes, and the bias, column by column."""
    x, x_float = own.T.astype(np.float64), exact.T.astype(np.float64)
    w = weights.astype(np.float64) if bias is None else np.column_stack([weights, bias]).astype(np.float64)
    count = weights.shape[1]
    h = x @ x.T
    order = [*np.argsort(-np.diag(h)[:count], kind="stable"), *range(count, len(h))]
    w, h, x, x_float = w[:, order], h[np.ix_(order, order)], x[order], x_float[order]
    h += ridge * np.mean(np.diag(h)) * np.eye(len(h))
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    p = asymmetry * np.triu((x_float - x) @ x.T @ u.T, 1) @ u
    codes = np.zeros((len(w), count))
    for i in range(count):
        before = w[:, i].copy()
        codes[:, i] = np.clip(np.rint(before / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        e = (before - step * codes[:, i]) / u[i, i]
        w[:, i:] -= np.outer(e, u[i, i:]) - np.outer(before, p[i, i:])
    unsorted = np.empty_like(codes)
    unsorted[:, order[:count]] = codes
    return unsorted, None if bias is None else w[:, -1]


@pytest.mark.parametrize("asymmetry", [0.0, 0.25, 1.0])
@pytest.mark.parametrize(("inputs", "bias"), [(40, True), (40, False), (300, True)])  # in one block, and in three
def test_codes_and_bias_are_those_of_the_formula(inputs, bias, asymmetry):
    layer = layer_of(inputs, 6, bias=bias)
    exact, own = rows_of(inputs, bias=bias)
    step = layer.weight_quantizer.step.numpy()[:, 0].astype(np.float64)
    given = layer.weight.detach().numpy(), None if layer.bias is None else layer.bias.detach().numpy()
    codes, moved = plainly(*given, step, 3, exact.numpy(), own.numpy(), 0.05, asymmetry)
    round_layer(layer, moments_of([(exact, own)], 0.0), GPTAQ(asymmetry=asymmetry, weighing=0.0))
    found = layer.encode_weight().codes.numpy()
    assert np.mean(found == codes) > 0.998  # float32 products of the rows tip a weight that lies at a threshold
    if bias:
        assert np.allclose(layer.bias.detach().numpy(), moved, rtol=1e-3, atol=1e-3)


def test_the_output_comes_nearer_to_that_of_the_float_model_than_rounding_and_than_without_its_inputs():
    exact, own = rows_of(60, bias=True)
    layer = layer_of(60, 20, bias=True)
    with torch.no_grad():
        wanted = exact[:, :-1] @ layer.weight.T + layer.bias
        errors = {"rounding": (layer(own[:, :-1]) - wanted).square().mean()}
        for asymmetry in (0.0, 0.25):
            rounded = copy.deepcopy(layer)
            round_layer(rounded, moments_of([(exact, own)], 0.5), GPTAQ(asymmetry=asymmetry))
            errors[asymmetry] = (rounded(own[:, :-1]) - wanted).square().mean()
    assert errors[0.25] < errors[0.0] < 0.8 * errors["rounding"]


def test_inputs_that_are_always_zero_cost_nothing():
    layer = layer_of(6, 5, bias=False)
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    rows[:, -2:] = 0.0
    round_layer(layer, moments_of([(rows, rows)], 0.5), GPTAQ())
    assert bool(torch.isfinite(layer.weight).all())


@pytest.mark.parametrize("base", ["ptq/mse", "statsq", "ofq/vit_w4a4"])
def test_a_model_with_any_quantizer_comes_nearer_on_images_that_it_never_saw(quantized, base):
    result = quantized(STAGE, base=base)
    assert result.error < 0.9 * quantized(base=base).error
    layer = result.model.blocks[0].mlp.fc1
    assert torch.allclose(layer.encode_weight().decode(), layer.quantized_weight())


def test_a_time_budget_that_is_over_leaves_the_calibrated_model(quantized):
    result = quantized(STAGE, clock=Clock(1e-9))
    assert result.error == pytest.approx(quantized().error)
    assert result.task.notes == ["gptaq: the time budget was used up after 0 of 4 blocks"]
