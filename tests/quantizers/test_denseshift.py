"""Zero-free powers of two: values, gradients, starts and positions, against plain loops."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.errors import RecipeError
from ofqctl.quantizers import build_quantizer
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.plan import quantizer_plan
from ofqctl.remedies.choosing import check_remedies

SHAPE = (6, 50)


def started(bits, weight=None, **options):
    torch.manual_seed(bits)
    weight = 0.02 * torch.randn(SHAPE) if weight is None else weight
    plan = quantizer_plan(
        method="denseshift", bits=bits, step_shape=(len(weight), 1), shape=tuple(weight.shape), **options
    )
    quantizer = build_quantizer(plan)
    quantizer.observe(weight)
    quantizer.finish()
    return quantizer, weight


def pass_through(hard, soft):
    return soft + (hard - soft).detach()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_value_and_every_gradient_are_those_of_the_recursion_and_its_surrogate(bits):
    quantizer, weight = started(bits, start="random")
    upstream, leaf = torch.randn(SHAPE), weight.clone().requires_grad_()
    value = quantizer(leaf)
    value.backward(upstream)
    w, step = weight.double().requires_grad_(), quantizer.step.detach().double().requires_grad_()
    latents = [t.detach().double().requires_grad_() for t in quantizer.scales]
    sign, power = pass_through(torch.where(w > 0, 1.0, -1.0), w), torch.zeros(SHAPE).double()
    for t in latents:
        power = (power + 1) * pass_through((t > 0).double(), t)
    surrogate = sign * (power + 1).sqrt()
    expected = pass_through(sign.detach() * 2 ** power.detach(), surrogate) * step
    expected.backward(upstream.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(leaf.grad.double(), w.grad, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(
        quantizer.scales.grad.double(), torch.stack([t.grad for t in latents]), rtol=1e-5, atol=1e-9
    )
    scaled = step.grad * (2 ** (2 ** (bits - 1) - 1) * SHAPE[1]) ** -0.5
    torch.testing.assert_close(quantizer.step.grad.double(), scaled, rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.integers(0, 999))
def test_codes_are_the_sign_and_the_number_of_positive_latents_at_the_end(bits, seed):
    quantizer, weight = started(bits)
    torch.manual_seed(seed)
    torch.nn.init.normal_(quantizer.scales)
    encoded = quantizer.encode(weight)
    for row, column in product(range(2), range(SHAPE[1])):
        latents = quantizer.scales[:, row, column].tolist()
        power = 0
        while power < len(latents) and latents[-1 - power] > 0:
            power += 1
        sign = 1 if weight[row, column] > 0 else -1
        assert encoded.codes[row, column] == (power if sign > 0 else -1 - power)
        assert encoded.grid.points(encoded.codes[row, column]) == sign * 2**power


@pytest.mark.parametrize(("bits", "points"), [(2, 2), (3, 8), (4, 128)])
def test_points_are_signs_times_powers_of_two_without_a_zero(bits, points):
    grid = started(bits)[0].grid
    positive = [2.0**power for power in range(2 ** (bits - 1))]
    assert positive[-1] == points
    assert grid.table.tolist() == [-value for value in positive[::-1]] + positive


@pytest.mark.parametrize("decomposition", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_from_pretrained_weights_codes_are_the_nearest_at_the_step_of_least_error(bits, decomposition):
    quantizer, weight = started(bits, decomposition=decomposition)
    assert torch.equal(quantizer.encode(weight).codes.float(), quantizer.grid.nearest(weight / quantizer.step))
    error = (quantizer(weight) - weight).square().mean()
    for factor in (0.9, 1.1):
        step = quantizer.step * factor
        other = quantizer.grid.points(quantizer.grid.nearest(weight / step)) * step
        assert (other - weight).square().mean() > error


@pytest.mark.parametrize("start", ["pretrained", "random"])
def test_latents_of_powers_start_with_a_low_variance_drawn_anew_for_each_weight(start):
    quantizer, weight = started(3, start=start, variance=4e-4)
    assert quantizer.scales.std().item() == pytest.approx(0.02, rel=0.1)
    again, _ = started(3, start=start, variance=4e-4)
    other, _ = started(3, weight=weight + 1e-3, start=start, variance=4e-4)
    assert torch.equal(quantizer.scales, again.scales)
    assert not torch.equal(quantizer.scales, other.scales)
    if start == "random":
        powers = (quantizer.grid.points(quantizer.encode(weight).codes)).abs().log2().flatten().int()
        assert torch.bincount(powers)[0] / len(powers) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("options", [{}, {"start": "random"}, {"decomposition": False}], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_fixed_step_keeps_the_size_of_each_row(bits, options):
    quantizer, weight = started(bits, step="rms", **options)
    assert not any(name == "step" for name, _ in quantizer.named_parameters())
    sizes = [rows.square().mean(1).sqrt() for rows in (quantizer(weight), weight)]
    tolerance = 0.03 if "decomposition" in options else 1e-5  # where the step changes codes, no step fits exactly
    torch.testing.assert_close(*sizes, rtol=tolerance, atol=0)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 4), st.booleans(), st.integers(0, 999))
def test_codes_of_a_run_are_taken_over(bits, decomposition, seed):
    quantizer, weight = started(bits, decomposition=decomposition)
    torch.manual_seed(seed)
    for parameter in quantizer.parameters():
        if parameter.shape[1:] == SHAPE:
            torch.nn.init.normal_(parameter)
    encoded = quantizer.encode(weight)
    again = build_quantizer(quantizer.describe())
    again.restore(encoded)
    found = again.encode(again.latent_of(encoded))
    assert torch.equal(found.codes, encoded.codes)
    assert torch.equal(found.decode(), encoded.decode())


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 4), st.integers(0, 999))
def test_the_position_is_nearest_to_the_threshold_where_the_smallest_latent_that_decides_is(bits, seed):
    quantizer, _ = started(bits)
    torch.manual_seed(seed)
    weight = torch.randn(SHAPE)
    torch.nn.init.normal_(quantizer.scales)
    encoded = quantizer.encode(weight)
    latents = torch.cat([weight[None], quantizer.scales.detach()])
    typical = [latents[0].square().mean().sqrt()] + [latents[1:].square().mean().sqrt()] * (len(latents) - 1)
    sizes = latents.abs() / torch.stack(typical)[:, None, None]
    nearest, towards = torch.full(SHAPE, torch.inf), torch.zeros(SHAPE)
    for number in range(len(latents)):
        flipped = latents.clone()
        flipped[number].neg_()
        quantizer.scales.data.copy_(flipped[1:])
        other = quantizer.encode(flipped[0]).codes.int() - encoded.codes.int()
        better = (other != 0) & (sizes[number] < nearest)
        nearest, towards = nearest.where(~better, sizes[number]), towards.where(~better, other.sign().float())
    expected = encoded.codes + towards * 0.5 * (1 - nearest.clamp(max=1))
    torch.testing.assert_close(encoded.position(weight), expected, rtol=0, atol=1e-5)


def test_latents_of_powers_decay_like_weights_and_the_step_does_not():
    assert started(3)[0].no_weight_decay() == {"step"}


@pytest.mark.parametrize(
    ("assignments", "told"),
    [
        (["weights.bits=1"], "weights: denseshift has 2, 3 or 4 bits"),
        (["weights.bits=5"], "weights: denseshift has 2, 3 or 4 bits: 1 leaves the sign alone, and from 5 on"),
        (["activations.method=denseshift"], "'denseshift' is unknown"),
        (["weights.start=random", "weights.decomposition=false"], "start: random draws the latents of the powers"),
        (["weights.variance=0"], "weights.variance"),
    ],
)
def test_what_it_cannot_be_is_refused_with_the_reason(assignments, told):
    with pytest.raises(RecipeError, match=told):
        load("denseshift/vit_w3a8", assignments)


@pytest.mark.parametrize("remedy", ["cga: {}", "freezing: {}", "dampening: {}", "bin_regularization: {}"])
def test_remedies_for_one_latent_weight_are_refused_where_there_are_several(quantized, remedy):
    phases = f"training.phases=[{{name: train, epochs: 1, {remedy}}}]"
    quick = ("calibration.images=4", "training.phases=[{name: train, epochs: 1}]")
    model = quantized("denseshift/vit_w3a8", *quick)
    with pytest.raises(RecipeError, match=r"follow from several"):
        check_remedies(load("denseshift/vit_w3a8", [phases]).training.phases[0], model, amp=False)
