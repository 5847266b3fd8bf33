"""VVTQ's steps, written out in plain numbers: starts, gradients, parts, and a step of training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.errors import RecipeError
from ofqctl.quantizers import build_quantizer
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.plan import quantizer_plan


def started(x, **plan):
    quantizer = build_quantizer(quantizer_plan(method="vvtq", **plan))
    quantizer.observe(x)
    quantizer.finish()
    return quantizer


def best_fit(values, bits):
    """Step and codes of a list of numbers, by the words of the paper."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    step = max(abs(v) for v in values) / high
    while True:
        codes = [round(min(max(v / step, low), high)) for v in values]
        fitted = sum(v * c for v, c in zip(values, codes, strict=True)) / sum(c * c for c in codes)
        if abs(fitted - step) < 1e-5 * step:
            return fitted
        step = fitted


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(0, 10**6))
def test_steps_of_weights_start_at_the_best_fit_of_each_part(bits, seed):
    weight = torch.randn(6, 20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    quantizer = started(weight, bits=bits, step_shape=(6, 1), shape=(6, 20), parts=3)
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        wanted = best_fit(weight[rows].flatten().tolist(), bits)
        assert quantizer.step[rows].flatten().tolist() == pytest.approx([wanted] * 2, rel=1e-3)


@pytest.mark.parametrize(("signed", "unsigned"), [(True, False), (False, False), (True, True)])
def test_steps_of_activations_start_at_twice_the_mean(signed, unsigned):
    x = torch.randn(4, 5, 6) if signed else torch.rand(4, 5, 6)
    quantizer = started(x, bits=3, step_shape=(), signed=None, unsigned=unsigned)
    high = 3 if signed and not unsigned else 7
    assert quantizer.range.high == high
    assert float(quantizer.step) == pytest.approx(float(2 * x.abs().mean()) / high**0.5, rel=1e-5)


def plain(x, step, low, high, rate):
    """Rounded values; autograd gives LSQ's gradients, with the step's multiplied by ``rate``."""
    step = step.detach() + (step - step.detach()) * rate
    position = torch.clamp(x / step, low, high)
    return (position + (position.round() - position).detach()) * step


def test_a_step_of_a_weight_has_the_paper_s_gradients():
    weight = torch.randn(6, 20)
    quantizer = started(weight, bits=3, step_shape=(6, 1), shape=(6, 20), parts=3)
    grad = torch.randn(6, 20)
    leaf = weight.clone().requires_grad_()
    value = quantizer(leaf)
    value.backward(grad)
    for part in range(3):
        rows = slice(2 * part, 2 * part + 2)
        own = weight[rows].clone().requires_grad_()
        step = quantizer.step.detach()[2 * part, 0].clone().requires_grad_()
        rate = 1.0 / (3 * float(own.detach().abs().sum())) ** 0.5
        wanted = plain(own, step, -4, 3, rate)
        wanted.backward(grad[rows])
        torch.testing.assert_close(value[rows], wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(leaf.grad[rows], own.grad, rtol=1e-5, atol=1e-6)
        for row in quantizer.step.grad[rows].flatten():
            assert float(row) == pytest.approx(float(step.grad), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("passes", [1, 4])
def test_a_step_of_an_activation_has_the_paper_s_gradients(passes):
    x = torch.randn(2, 5, 6)
    quantizer = started(x, bits=3, step_shape=(), signed=None)
    quantizer.passes = passes
    leaf, own = x.clone().requires_grad_(), x.clone().requires_grad_()
    step = quantizer.step.detach().clone().requires_grad_()
    grad = torch.randn(2, 5, 6)
    quantizer(leaf).backward(grad)
    plain(own, step, -4, 3, 1.0 / ((passes * x.numel()) ** 0.5 * 3)).backward(grad)
    torch.testing.assert_close(leaf.grad, own.grad)
    assert float(quantizer.step.grad) == pytest.approx(float(step.grad), rel=1e-3, abs=1e-5)


def test_steps_of_a_part_stay_equal_in_training():
    weight = torch.randn(6, 20, requires_grad=True)
    quantizer = started(weight.detach(), bits=2, step_shape=(6, 1), shape=(6, 20), parts=3)
    optimizer = torch.optim.Adam([*quantizer.parameters(), weight], lr=0.01)
    for seed in range(5):
        optimizer.zero_grad()
        target = torch.randn(6, 20, generator=torch.Generator().manual_seed(seed))
        (quantizer(weight) - target).square().sum().backward()
        optimizer.step()
    pairs = quantizer.step.detach().view(3, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert len(pairs[:, 0].unique()) == 3


def test_rows_that_cannot_be_divided_are_refused():
    with pytest.raises(RecipeError, match="3 equal parts of 5 rows"):
        build_quantizer(quantizer_plan(method="vvtq", bits=2, step_shape=(5, 1), shape=(5, 4), parts=3))


def test_settings_of_activations_are_none_of_weights():
    with pytest.raises(RecipeError, match="unsigned"):
        load("lsq", ["weights.method=vvtq", "weights.unsigned=true"])


def test_the_published_recipes_quantize_query_key_and_value_apart(quantized):
    recipe = load("vvtq/deit_tiny_w2a2")
    assert recipe.training.augmentation.crops == 4
    model = quantized("vvtq/deit_tiny_w2a2", "model=null")
    qkv = model.blocks[0].attn.qkv.weight_quantizer
    assert len(qkv.step.unique()) == 3
    assert len(model.blocks[0].mlp.fc1.weight_quantizer.step.unique()) == 1
    assert model.blocks[0].mlp.fc2.input.range.low == 0
    assert model.blocks[0].mlp.fc2.input.before is not None
