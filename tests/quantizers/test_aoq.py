"""AOQ's weights, written out in plain numbers: rounding, gradients, what a run stores, and the shrinking phase."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.errors import RecipeError
from ofqctl.quantizers import build_quantizer
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.plan import quantizer_plan
from ofqctl.remedies.shrinking import Shrinking, ShrinkingScales


def started(weight, bits=2, step=None, threshold=None):
    quantizer = build_quantizer(quantizer_plan(method="aoq", bits=bits, step_shape=(1, 1), shape=tuple(weight.shape)))
    quantizer.observe(weight)
    quantizer.finish()
    with torch.no_grad():
        if step is not None:
            quantizer.step.fill_(step)
        if threshold is not None:
            quantizer.threshold.fill_(threshold)
    return quantizer


def rounded(w, bits, step, threshold):
    """The level of the interval between thresholds that a number lies in."""
    n = 2 ** (bits - 1)
    code = sum(w > threshold * k for k in range(-n + 1, n)) - n
    return step * (code + 0.5)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 4), st.floats(0.2, 2.0), st.floats(0.1, 2.0), st.integers(0, 10**6))
def test_a_weight_gets_the_level_of_its_interval(bits, step, threshold, seed):
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(seed))
    value = started(weight, bits, step, threshold)(weight)
    for w, found in zip(weight.flatten().tolist(), value.flatten().tolist(), strict=True):
        if min(abs(w - threshold * k) for k in range(-8, 9)) > 1e-4:
            assert found == pytest.approx(rounded(w, bits, step, threshold), rel=1e-5)


def test_scales_start_at_the_standard_deviation():
    weight = torch.randn(4, 50)
    for bits in (2, 3, 4):
        quantizer = started(weight, bits)
        wanted = float(weight.std(correction=0)) / 2 ** (bits - 2)
        assert quantizer.step.item() == quantizer.threshold.item() == pytest.approx(wanted, rel=1e-5)


def test_every_weight_gets_its_gradient_and_the_step_that_of_its_points():
    weight = torch.tensor([[0.1, -0.2, 9.0, -9.0]], requires_grad=True)
    quantizer = started(weight.detach(), 2, 1.0, 0.5)
    quantizer(weight).backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]
    assert quantizer.step.grad.item() == pytest.approx((0.5 - 2 * 0.5 + 3 * 1.5 - 4 * 1.5) / 4**0.5)


def test_codes_are_restored_with_both_scales_and_have_a_latent_weight():
    weight = torch.randn(4, 50)
    quantizer = started(weight, 3, 0.7, 0.2)
    codes = quantizer.encode(weight)
    again = started(torch.randn(4, 50), 3)
    again.restore(codes)
    assert again.threshold.item() == pytest.approx(0.2, rel=1e-5)
    assert torch.equal(again.encode(again.latent_of(codes)).codes, codes.codes)


def test_more_steps_and_1_bit_are_refused():
    with pytest.raises(RecipeError, match="one step for a layer"):
        build_quantizer(quantizer_plan(method="aoq", bits=2, step_shape=(4, 1), shape=(4, 6)))
    with pytest.raises(RecipeError, match="1 bit"):
        load("aoq/vit_w2a2", ["weights.bits=1"])


def test_scales_shrink_along_a_cosine_and_go_on_where_they_were(quantized):
    model = quantized("aoq/vit_w2a2")
    own = model.blocks[0].mlp.fc1.weight_quantizer
    first = own.step.item()
    remedy = ShrinkingScales(model, Shrinking(), steps=11)
    shares = []
    for _ in range(5):
        own.step.data += 0.1  # what an optimizer might do
        remedy.after_step()
        shares.append(own.step.item() / first)
        assert own.threshold.item() == pytest.approx(own.step.item())
    later = ShrinkingScales(model, Shrinking(), steps=11)
    later.load_state_dict(remedy.state_dict())
    for _ in range(6):
        later.after_step()
        shares.append(own.step.item() / first)
    assert shares[0] == pytest.approx(1.0)
    assert shares[5] == pytest.approx(0.65, abs=0.01)
    assert shares[-1] == pytest.approx(0.3)
    assert shares == sorted(shares, reverse=True)


def test_other_weights_have_nothing_to_shrink(quantized):
    with pytest.raises(RecipeError, match="aoq weights, and this model has none"):
        ShrinkingScales.check(quantized("lsq"), Shrinking())
