"""Rounded gradients are right on average, as noisy as the paper says, and those that training uses."""

import math

import pytest
import torch
from torch.nn import functional as F

from ofqctl.errors import RecipeError
from ofqctl.layers import QuantLinear
from ofqctl.recipe.catalogue import load
from ofqctl.remedies import check_remedies, remedies_of
from ofqctl.remedies.statquant import (
    StatQuant,
    StochasticGradients,
    householder_rows,
    rounded_gradient,
    stochastic_rows,
)

RANGES = (8.0, 0.1, 3.0, 0.2, 0.05, 0.3, 0.1)


def uneven_rows(sets=1):
    rows = torch.randn(sets, len(RANGES), 12, generator=torch.Generator().manual_seed(5))
    return rows * torch.tensor(RANGES)[:, None]


def plain_groups(ranges):
    """Lists of rows, the large one first, by the words of the paper."""
    order = sorted(range(len(ranges)), key=lambda i: -ranges[i])
    count = len(ranges)
    k = max(k for k in range(1, count) if (count - k) * ranges[order[k - 1]] >= sum(ranges[i] for i in order[:k]))
    total, groups, taken, so_far = sum(ranges[i] for i in order[:k]), [], 0, 0.0
    for large in order[:k]:
        so_far += ranges[large]
        until = round(so_far / total * (count - k))
        groups.append([large, *order[k + taken : k + until]])
        taken = until
    return groups


def plain_transform(rows):
    """The matrix that a set of rows is multiplied by: block diagonal, Householder times scales."""
    ranges = (rows.amax(1) - rows.amin(1)).double().tolist()
    matrix = torch.eye(len(ranges), dtype=torch.float64)
    for group in plain_groups(ranges):
        m = len(group)
        if m == 1:
            continue
        first = torch.zeros(m, dtype=torch.float64)
        first[0] = 1.0
        normal = torch.full((m,), 1.0 / math.sqrt(m), dtype=torch.float64) - first
        reflection = torch.eye(m, dtype=torch.float64) - 2.0 * torch.outer(normal, normal) / normal.dot(normal)
        torch.testing.assert_close(reflection @ first, torch.full((m,), 1.0 / math.sqrt(m), dtype=torch.float64))
        second = max(ranges[i] for i in group[1:])
        largest = float(reflection[:, 1:].abs().max())
        weights = [ranges[group[0]] / math.sqrt(m)] + [second * largest / (m - 1)] * (m - 1)
        scales = torch.tensor([w ** (-1.0 / 3.0) for w in weights], dtype=torch.float64)
        matrix[torch.tensor(group)[:, None], torch.tensor(group)] = reflection @ scales.diag()
    return matrix


def variance_of_rows(rows, bits):
    """Of stochastic rounding, exactly: p (1 - p) / S^2 for each element, with p the distance to the value below."""
    span = rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)
    step = span / (2**bits - 1)
    place = (rows - rows.amin(1, keepdim=True)) / step
    part = place - place.floor()
    return part * (1 - part) * step**2


def moments(draw, count=3000):
    drawn = torch.stack([draw() for _ in range(count)]).double()
    return drawn.mean(0), drawn.var(0, correction=0)


def test_values_of_a_row_are_evenly_spaced_over_its_range():
    rows = uneven_rows()[0]
    rounded = stochastic_rows(rows, 3)
    low, step = rows.amin(1, keepdim=True), (rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)) / 7
    codes = (rounded - low) / step
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0.0)
    assert float((rounded - rows).abs().div(step).max()) < 1.0
    torch.testing.assert_close(rounded.amin(1), rows.amin(1))


@pytest.mark.parametrize("quantizer", ["tensor", "rows", "householder"])
@pytest.mark.parametrize("rows", ["sample", "token"])
def test_rounding_is_right_on_average(quantizer, rows):
    grad = torch.randn(3, 4, 5) * torch.tensor([4.0, 0.2, 1.0])[:, None, None]
    settings = StatQuant(bits=3, quantizer=quantizer, rows=rows)
    mean, variance = moments(lambda: rounded_gradient(grad, settings))
    error = (mean - grad.double()).abs() / (variance / 3000).sqrt().clamp(min=1e-6)
    assert float(error.max()) < 5.0


def test_the_variance_of_ranges_of_tensor_and_rows_is_that_of_the_formula():
    rows = uneven_rows()[0].double()
    _, found = moments(lambda: stochastic_rows(rows.float(), 4))
    assert float(found.sum()) == pytest.approx(float(variance_of_rows(rows, 4).sum()), rel=0.05)
    spans = rows.amax(1) - rows.amin(1)
    assert float(found.sum()) <= 12 / (4 * 15**2) * float((spans**2).sum())
    whole = rows.reshape(1, -1)
    _, found_whole = moments(lambda: stochastic_rows(whole.float(), 4))
    span = float(whole.max() - whole.min())
    assert float(found.sum()) < float(found_whole.sum()) <= whole.numel() * span**2 / (4 * 15**2)


def test_the_householder_transform_is_that_of_the_paper():
    rows = uneven_rows()[0]
    matrix = plain_transform(rows)
    transformed = matrix @ rows.double()
    _, found = moments(lambda: householder_rows(rows[None], 4)[0])
    back = matrix.inverse()
    expected = back.square() @ variance_of_rows(transformed, 4)
    assert float(found.sum()) == pytest.approx(float(expected.sum()), rel=0.05)
    _, by_row = moments(lambda: stochastic_rows(rows, 4))
    assert float(found.sum()) < float(by_row.sum())  # few rows of large range are what it is for


def test_sets_of_rows_are_transformed_on_their_own():
    rows = uneven_rows(2) * torch.tensor([1.0, 50.0])[:, None, None]
    torch.manual_seed(3)
    noise = torch.rand_like(rows)
    one_by_one = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "rand_like", lambda _rows: noise)
        both = householder_rows(rows, 4)
        for one in range(2):
            patched.setattr(torch, "rand_like", lambda _rows, one=one: noise[one : one + 1])
            one_by_one.append(householder_rows(rows[one : one + 1], 4))
    torch.testing.assert_close(both, torch.cat(one_by_one))


def test_constant_and_single_rows_stay():
    for rows in (torch.zeros(1, 4, 3), torch.full((2, 3, 4), 2.5), torch.randn(2, 1, 4).clamp(0.0, 0.0)):
        torch.testing.assert_close(householder_rows(rows, 4), rows)
        torch.testing.assert_close(stochastic_rows(rows, 4), rows)


@pytest.mark.parametrize("quantizer", ["tensor", "rows", "householder"])
def test_a_step_has_the_gradients_of_a_plain_product_of_rounded_gradients(quantized, quantizer):
    model = quantized("lsq")
    layer = next(m for m in model.modules() if isinstance(m, QuantLinear))
    settings = StatQuant(bits=4, weight_bits=5, quantizer=quantizer)
    remedy = StochasticGradients(model, settings, steps=1)
    x = torch.randn(2, 3, layer.in_features)
    grad = torch.randn(2, 3, layer.out_features)
    leaves = [t.clone().requires_grad_() for t in (x, layer.weight.detach(), layer.bias.detach())]
    torch.manual_seed(9)
    out = layer.product(*leaves)
    out.backward(grad)
    torch.manual_seed(9)
    to_input = rounded_gradient(grad, settings).flatten(0, 1)
    columns = grad.flatten(0, 1).T
    if quantizer == "tensor":
        columns = stochastic_rows(columns.reshape(1, -1), 5).view_as(columns)
    else:
        columns = stochastic_rows(columns, 5)
    torch.testing.assert_close(out, F.linear(*leaves))
    torch.testing.assert_close(leaves[0].grad.flatten(0, 1), to_input @ leaves[1].detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaves[1].grad, columns @ x.flatten(0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(leaves[2].grad, columns.sum(1), rtol=1e-5, atol=1e-5)
    remedy.close()
    assert layer.product is F.linear


def test_outputs_of_a_model_do_not_change_and_gradients_come_close(quantized, backward, images):
    model = quantized("lsq")
    before = model(images)
    backward(model, 0)
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    remedy = StochasticGradients(model, StatQuant(bits=8), steps=1)
    torch.testing.assert_close(model(images), before)
    backward(model, 0)
    for name in ("blocks.0.mlp.fc1.weight", "blocks.1.attn.qkv.bias", "blocks.0.mlp.fc2.weight_quantizer.step"):
        found = dict(model.named_parameters())[name].grad
        assert float((found - exact[name]).norm() / exact[name].norm()) < 0.1
        assert not torch.equal(found, exact[name])
    remedy.close()


def test_autocast_is_refused_with_the_reason(quantized):
    recipe = load("statquant/vit_w8a8")
    model = quantized("statquant/vit_w8a8")
    phase = recipe.training.phases[0]
    check_remedies(phase, model, amp=False)
    with pytest.raises(RecipeError, match="statquant needs gradients in float32"):
        check_remedies(phase, model, amp=True)
    for remedy in remedies_of(phase, model, 1):
        remedy.close()


def test_a_model_without_quantized_linear_layers_is_refused(tiny_vit):
    with pytest.raises(RecipeError, match="has none"):
        StochasticGradients.check(tiny_vit, StatQuant())
