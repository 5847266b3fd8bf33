"""Each method against its formula, written out with plain numbers or with autograd."""

import math
from functools import partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ofqctl.grids import AffineGrid, CodeRange, IntegerGrid
from ofqctl.quantizers import LSQ, StatsQ, Uniform, build_quantizer, computed_again
from ofqctl.quantizers.fake_quantize import fake_quantize
from ofqctl.quantizers.ranges import RangeEstimator, step_of_least_error
from ofqctl.quantizers.reference import fake_quantize as plain
from ofqctl.recipe.plan import quantizer_plan


def statsq_by_hand(row, bits):
    n = 2 ** (bits - 1)
    s = 2 * sum(abs(w) for w in row) / len(row)
    values = []
    for w in row:
        u = min(max(w / s, -1.0), 1 - 1e-6)
        values.append(s / n * (round(u * n - 0.5) + 0.5))  # Python rounds half to even
    return values


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.lists(st.floats(-3, 3, width=32).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=9))
def test_statsq_is_the_formula_of_the_paper(bits, row):
    weight = torch.tensor([row], dtype=torch.float64)
    got = StatsQ(quantizer_plan(method="statsq", bits=bits, step_shape=(1, 1)))(weight.float())
    expected = torch.tensor([statsq_by_hand(row, bits)])
    step = 2 * weight.abs().mean() / 2 ** (bits - 1)
    differs = (got - expected).abs() > 1e-4 * step
    if differs.any():  # float32 may fall on the other side of a rounding boundary
        boundary = (weight / step - 0.5).remainder(1.0) - 0.5
        assert (boundary[differs].abs() < 1e-4).all()


def test_statsq_passes_every_gradient_even_of_clipped_weights():
    weight = torch.tensor([[0.1, -0.2, 9.0, -9.0]], requires_grad=True)
    StatsQ(quantizer_plan(method="statsq", bits=2, step_shape=(1, 1)))(weight).backward(torch.tensor([[1.0, 2, 3, 4]]))
    assert weight.grad.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_statsq_uses_all_levels_and_has_no_zero():
    weight = torch.randn(1, 4096)
    value = StatsQ(quantizer_plan(method="statsq", bits=2, step_shape=(1, 1)))(weight)
    assert len(value.unique()) == 4
    assert value.abs().min() > 0
    assert torch.allclose(value.unique(), -value.unique().flip(0))


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["statsq", "quest"]),
    st.integers(2, 8),
    st.integers(0, 10**6),
    st.integers(3, 40),
    st.sampled_from([1.0, 1e-3, 30.0]),
)
def test_a_latent_weight_is_found_that_computed_steps_encode_as_given_codes(method, bits, seed, width, size):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, width, generator=generator) * size
    quantizer = build_quantizer(quantizer_plan(method=method, bits=bits, step_shape=(5, 1)))
    codes = quantizer.encode(weight)
    again = quantizer.encode(quantizer.latent_of(codes))
    assert torch.equal(again.codes, codes.codes)
    assert torch.allclose(again.step, codes.step, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "settings", [{"method": "lsq"}, {"method": "uniform"}, {"method": "uniform", "symmetric": False}], ids=str
)
def test_the_values_of_codes_are_encoded_as_these_codes(settings):
    weight = torch.randn(6, 33, generator=torch.Generator().manual_seed(0))
    quantizer = build_quantizer(quantizer_plan(**settings, bits=3, step_shape=(6, 1)))
    quantizer.observe(weight)
    quantizer.finish()
    codes = quantizer.encode(weight)
    assert torch.equal(quantizer.encode(quantizer.latent_of(codes)).codes, codes.codes)


def quest_by_hand(row, bits):
    """Values, and which weights get a gradient."""
    rms = math.sqrt(sum(w * w for w in row) / len(row))
    top = {2: 1.494, 3: 2.051, 4: 2.514}[bits] * rms
    width = 2 * top / (2**bits - 1)
    levels = [-top + width * k for k in range(2**bits)]
    values = [min(levels, key=lambda level: abs(level - w)) for w in row]
    return values, [abs(v - w) <= width / 2 * (1 + 1e-6) for v, w in zip(values, row, strict=True)]


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 4), st.lists(st.floats(-3, 3, width=32).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=9))
def test_quest_is_the_formula_of_the_paper_with_trusted_gradients(bits, row):
    weight = torch.tensor([row], requires_grad=True)
    quantizer = build_quantizer(quantizer_plan(method="quest", bits=bits, step_shape=(1, 1)))
    got, width = quantizer(weight), float(quantizer.step_of(weight))
    got.backward(torch.ones_like(got))
    values, trusted = quest_by_hand(row, bits)
    for w, found, wanted, passed, grad in zip(
        row, got[0].tolist(), values, trusted, weight.grad[0].tolist(), strict=True
    ):
        near = abs((w / width) % 1.0 - 0.5) > 0.495 or abs(abs(w) / width - 2 ** (bits - 1)) < 0.01
        assert near or (found == pytest.approx(wanted, rel=1e-3) and grad == float(passed))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_the_range_of_quest_has_the_least_error_of_normal_weights(bits):
    normal = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64))
    quantizer = build_quantizer(quantizer_plan(method="quest", bits=bits, step_shape=(1, 1)))
    step, grid = float(quantizer.step_of(normal[None])), quantizer.grid

    def error(step):
        return float((grid.points(grid.nearest(normal / step)) * step - normal).square().mean())

    assert error(step) <= min(error(0.98 * step), error(1.02 * step))


def test_statsq_flattens_a_stack_of_matrices_to_rows():
    stack = torch.randn(3, 5, 7)
    of_stack = StatsQ(quantizer_plan(method="statsq", bits=3, step_shape=(3, 5, 1)))(stack)
    of_rows = StatsQ(quantizer_plan(method="statsq", bits=3, step_shape=(15, 1)))(stack.reshape(15, 7))
    assert torch.equal(of_stack.reshape(15, 7), of_rows)


@pytest.mark.parametrize(("signed", "factor"), [(True, 2.0), (False, 4.0)])
def test_lsq_starts_from_the_mean_magnitude(signed, factor):
    x = torch.randn(4, 5, 6).abs() if not signed else torch.randn(4, 5, 6)
    quantizer = LSQ(quantizer_plan(method="lsq", bits=4, step_shape=(5, 1), signed=signed))
    quantizer.observe(x[:2])
    quantizer.observe(x[2:])
    quantizer.finish()
    expected = factor * x.abs().mean(dim=(0, 2)) / quantizer.range.high**0.5
    assert torch.allclose(quantizer.step.flatten(), expected)


def test_lsq_takes_a_signed_grid_as_soon_as_the_data_has_negatives():
    plan = quantizer_plan(method="lsq", bits=8, step_shape=(), signed=None)
    for data, signed in ((torch.linspace(0, 1, 9), False), (torch.linspace(-0.5, 0.5, 9), True)):
        quantizer = LSQ(plan)
        quantizer.observe(data)
        quantizer.finish()
        assert quantizer.range.signed is signed
        assert quantizer.describe().signed is signed


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("passes", [1, 2, 4])
def test_gradients_do_not_depend_on_how_a_batch_is_split_into_forward_passes(passes, recomputed):
    torch.manual_seed(0)
    x, weight = torch.randn(8, 5, 6), torch.randn(8, 5, 6)
    quantizer = LSQ(quantizer_plan(method="lsq", bits=2, step_shape=(5, 1), shift_shape=(6,)))
    quantizer.observe(x)
    quantizer.finish()
    (quantizer(x) * weight).mean().backward()
    expected = {name: p.grad.clone() for name, p in quantizer.named_parameters()}
    quantizer.zero_grad()
    quantizer.passes = passes
    for part, factor in zip(x.chunk(passes), weight.chunk(passes), strict=True):
        value = checkpoint(quantizer, part, use_reentrant=False) if recomputed else quantizer(part)
        ((value * factor).mean() / passes).backward()
    for name, parameter in quantizer.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-8)
    assert "passes" not in quantizer.state_dict()


def test_backward_keeps_the_input_alone():
    saved = {}
    x, step = torch.randn(8, 16, requires_grad=True), torch.tensor(0.5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t):
        fake_quantize(x * 1.0, step, IntegerGrid(CodeRange(-8, 7)))
    assert sum(t.numel() for t in saved.values()) == x.numel() + 1


@pytest.mark.parametrize("activation", [F.gelu, partial(F.gelu, approximate="tanh"), F.silu])
@pytest.mark.parametrize("recomputed", [False, True])
def test_the_output_of_an_activation_is_computed_again_from_its_input(activation, recomputed):
    grid, given, weight = IntegerGrid(CodeRange(-2, 1)), torch.randn(8, 16), torch.randn(4, 16)
    leaves = [t.requires_grad_() for t in (given, torch.tensor(0.4), weight)]
    storages, grads = [], []

    def product(given, step, weight, compute):
        x = activation(given)
        storages.append(x.untyped_storage()._weak_ref())
        value = compute(x, step, grid)
        with computed_again(value):
            return F.linear(value, weight)

    for compute in (fake_quantize, plain):
        given = *leaves, compute
        out = checkpoint(product, *given, use_reentrant=False) if recomputed else product(*given)
        if compute is fake_quantize:
            assert torch.UntypedStorage._expired(storages[0])
        grads.append(torch.autograd.grad(out.square().sum(), leaves))
    for fast, slow in zip(*grads, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)


def test_low_precision_inputs_get_gradients_of_their_own_dtype():
    x = torch.randn(4, 4, dtype=torch.bfloat16, requires_grad=True)
    value = fake_quantize(x, torch.tensor(0.1), IntegerGrid(CodeRange(-8, 7)))
    value.sum().backward()
    assert value.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(0, 1000), st.floats(-3, 3))
def test_minmax_covers_every_value_and_keeps_zero_on_an_asymmetric_grid(bits, seed, center):
    torch.manual_seed(seed)
    x = torch.randn(3, 40) + center
    quantizer = Uniform(quantizer_plan(method="uniform", bits=bits, step_shape=(3, 1), symmetric=False, range="minmax"))
    quantizer.observe(x)
    quantizer.finish()
    assert ((quantizer(x) - x).abs() <= quantizer.step * 1.001).all()
    assert (quantizer(torch.zeros(3, 1)) == 0).all()


@given(
    mean=st.floats(0.3, 0.6),
    std=st.floats(0.15, 0.5),
    method=st.sampled_from(["minmax", "mse"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=20, deadline=None)
def test_the_pixels_of_an_image_are_exact_at_8_bits_without_whole_zero_points(mean, std, method, seed):
    pixels = torch.randint(0, 256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    pixels[0, :, 0, :2] = torch.tensor([0, 255])
    x = (pixels / 255 - mean) / std
    plan = quantizer_plan(method="uniform", step_shape=(3, 1, 1), bits=8, symmetric=False, whole=False, range=method)
    quantizer = Uniform(plan)
    quantizer.observe(x)
    quantizer.finish()
    assert torch.allclose(quantizer(x), x, atol=1e-5)
    assert torch.equal(quantizer.encode(x).codes.to(torch.int64), pixels)


def test_a_channel_of_one_value_keeps_it_without_whole_zero_points():
    quantizer = Uniform(
        quantizer_plan(method="uniform", step_shape=(2, 1, 1), bits=8, symmetric=False, whole=False, range="minmax")
    )
    x = torch.full((1, 2, 4, 4), 0.7)
    quantizer.observe(x)
    quantizer.finish()
    assert torch.allclose(quantizer(x), x, atol=1e-5)


def test_percentile_ignores_outliers_and_least_error_beats_minmax():
    torch.manual_seed(0)
    x = torch.randn(1, 20_000)
    x[0, 0] = 100.0
    codes = CodeRange.of_bits(4, signed=True)
    errors = {}
    for method in ("minmax", "percentile", "mse"):
        estimator = RangeEstimator(method, 99.9)
        estimator.observe(x)
        step, grid = estimator.fit(codes, symmetric=True)
        errors[method] = float((fake_quantize(x, step, grid) - x)[:, 1:].square().mean())
    assert errors["percentile"] < errors["minmax"] / 10
    assert errors["mse"] < errors["minmax"]


def test_memory_of_the_estimator_does_not_grow_with_the_data():
    estimator = RangeEstimator("mse", 99.9)
    sizes = []
    for _ in range(6):
        estimator.observe(torch.randn(2, 700_000))
        sizes.append(estimator._sample.numel())
    assert max(sizes) <= 1 << 20
    assert min(sizes) >= 1 << 17


def test_batches_seen_one_by_one_weigh_the_same_in_the_sample():
    estimator = RangeEstimator("percentile", 99.9)
    for value in range(8):
        estimator.observe(torch.full((1, 900_000), float(value)))
    shares = [(estimator._sample == value).float().mean().item() for value in range(8)]
    assert min(shares) > 0.08
    assert max(shares) < 0.18


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 8), st.booleans(), st.integers(0, 10**6))
@example(bits=8, centred=False, seed=495)
def test_a_step_of_least_error_is_as_good_as_any_on_a_fine_lattice(bits, centred, seed):
    rows = torch.randn(3, 4000, generator=torch.Generator().manual_seed(seed))
    bounds, offset = CodeRange.of_bits(bits, signed=True), 0.5 if centred else 0.0
    grid = AffineGrid(bounds, torch.tensor(offset))

    def error(step):
        codes = (rows / step - offset).round().clamp(bounds.low, bounds.high)
        return ((codes + offset) * step - rows).square().mean(1, keepdim=True)

    found = error(step_of_least_error(rows, grid))
    widest = rows.abs().amax(1, keepdim=True) / (bounds.high + offset)
    best = torch.stack([error(widest * fraction) for fraction in torch.linspace(0.05, 1.0, 300)]).amin(0)
    assert (found <= 1.03 * best).all()


def test_lsq_starts_centred_on_the_mean_where_the_error_is_least():
    x = torch.randn(64, 5, 8) + 3.0 * torch.arange(8)
    plan = quantizer_plan(method="lsq", bits=2, step_shape=(5, 1), shift_shape=(8,), start="mse")
    quantizer = LSQ(plan)
    for part in x.split(16):
        quantizer.observe(part)
    quantizer.finish()
    assert (quantizer.encode(x).decode() - x).var() < 0.13  # four levels of a normal variable: 0.1188
    published = LSQ(plan.model_copy(update={"start": "mean"}))
    published.observe(x)
    published.finish()
    assert not published.before.any()
    assert (published.encode(x).decode() - x).var() > 1.0


def test_lsq_with_an_unsigned_grid_and_with_weights_starts_where_the_error_is_least():
    x = torch.randn(64, 5, 8).relu()
    unsigned = LSQ(quantizer_plan(method="lsq", bits=2, step_shape=(5, 1), shift_shape=(8,), signed=False, start="mse"))
    weight = LSQ(quantizer_plan(method="lsq", bits=4, step_shape=(64, 1, 1), start="mse"))
    for quantizer in (unsigned, weight):
        quantizer.observe(x)
        quantizer.finish()
        started = (quantizer.encode(x).decode() - x).square().mean()
        for factor in (0.8, 1.25):
            with torch.no_grad():
                quantizer.step.mul_(factor)
                assert (quantizer.encode(x).decode() - x).square().mean() > started
                quantizer.step.div_(factor)


def test_what_lsq_keeps_for_the_search_does_not_grow_with_the_images():
    quantizer = LSQ(quantizer_plan(method="lsq", bits=2, step_shape=(100, 1), start="mse"))
    for _ in range(12):
        quantizer.observe(torch.randn(2, 100, 1000))
    assert sum(part.numel() for part in quantizer._kept) <= 1 << 20
