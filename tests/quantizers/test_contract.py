"""The contract every quantizer keeps: forward is encode, decoded; codes lie on the grid; state comes back."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.grids import CodeRange, TableGrid
from ofqctl.packing import pack, unpack
from ofqctl.quantizers import QUANTIZERS, build_quantizer
from ofqctl.recipe.plan import quantizer_plan

ROLES = ("weights", "activations")
SHAPES = {
    (): (4, 5, 6),
    (5, 1): (4, 5, 6),
    (6,): (4, 5, 6),
    (1, 1): (5, 6),
    (3, 1, 1): (2, 3, 4, 4),
    (2, 5, 1): (4, 2, 5, 6),
}
WEIGHT_SHAPES = {(5, 1): (5, 6), (1, 1): (5, 6), (3, 1, 1, 1): (3, 2, 4, 4), (2, 5, 1): (2, 5, 6)}


FOR_WEIGHTS = {name for name, method in QUANTIZERS.methods().items() if "activations" not in (method.roles or ROLES)}
WITH_SHIFTS = set(QUANTIZERS.methods()) - FOR_WEIGHTS - {"uniform"}


def widths(method):
    """The bits that a method can have."""
    refused = getattr(QUANTIZERS[method].settings(), "refused", lambda _: None)
    return [bits for bits in range(1, 9) if refused(bits) is None]


def shapes_of(method):
    """The shapes of steps that a method can have, with those of tensors."""
    if method not in FOR_WEIGHTS:
        return SHAPES
    return {(1, 1): WEIGHT_SHAPES[1, 1]} if "one_step" in QUANTIZERS[method].traits else WEIGHT_SHAPES


@st.composite
def plans(draw):
    method = draw(st.sampled_from(sorted(QUANTIZERS.methods())))
    shapes = shapes_of(method)
    ranges = {"range": draw(st.sampled_from(["minmax", "percentile", "mse"])), "symmetric": draw(st.booleans())}
    step_shape = draw(st.sampled_from(sorted(shapes)))
    plan = quantizer_plan(
        method=method,
        bits=draw(st.sampled_from(widths(method))),
        step_shape=step_shape,
        shape=shapes[step_shape] if method in FOR_WEIGHTS else None,
        shift_shape=draw(st.sampled_from([None, (1,)])) if method in WITH_SHIFTS else None,
        dynamic=method not in FOR_WEIGHTS and draw(st.booleans()),
        signed=True if method in FOR_WEIGHTS else draw(st.sampled_from([True, False, None])),
        **(ranges if method == "uniform" else {}),
    )
    return plan, shapes[step_shape]


def calibrated(plan, shape, seed, scale=1.0):
    torch.manual_seed(seed)
    x = torch.randn(shape) * scale
    quantizer = build_quantizer(plan)
    quantizer.observe(x)
    quantizer.finish()
    if quantizer.before is not None:
        torch.nn.init.normal_(quantizer.before, std=0.1)
        torch.nn.init.normal_(quantizer.after, std=0.1)
    return quantizer, x


@settings(deadline=None, max_examples=60)
@given(plans(), st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 50.0]))
def test_forward_is_exactly_encode_then_decode_with_and_without_gradient(case, seed, scale):
    plan, shape = case
    quantizer, x = calibrated(plan, shape, seed, scale)
    encoded = quantizer.encode(x)
    assert torch.equal(quantizer(x), encoded.decode())
    with torch.no_grad():
        assert torch.equal(quantizer(x), encoded.decode())
    trained = quantizer(x.clone().requires_grad_())
    assert torch.equal(trained, encoded.decode())


@settings(deadline=None, max_examples=60)
@given(plans(), st.integers(0, 1000), st.sampled_from([torch.bfloat16, torch.float16, torch.float64]))
def test_in_another_type_the_value_is_that_of_the_codes_in_float32_rounded_to_it(case, seed, dtype):
    plan, shape = case
    quantizer, x = calibrated(plan, shape, seed)
    quantizer, x = quantizer.to(dtype), x.to(dtype)
    encoded = quantizer.encode(x)
    tensors = (encoded.step, encoded.grid.points(encoded.codes), encoded.shift, encoded.largest)
    assert all(t.dtype == torch.float32 for t in tensors if isinstance(t, torch.Tensor))
    trained, expected = quantizer(x.clone().requires_grad_()), encoded.decode().to(dtype)
    with torch.no_grad():
        value = quantizer(x)
    assert value.dtype == trained.dtype == dtype
    assert torch.equal(value, trained)
    if plan.dynamic:  # rounded once more, ahead of the product with the largest magnitude
        assert torch.allclose(value, expected, rtol=2 * max(torch.finfo(t).eps for t in (dtype, torch.float32)))
    else:
        assert torch.equal(value, expected)


@settings(deadline=None, max_examples=60)
@given(plans(), st.integers(0, 1000))
def test_codes_are_integers_of_the_grid_and_survive_packing(case, seed):
    plan, shape = case
    quantizer, x = calibrated(plan, shape, seed)
    encoded = quantizer.encode(3 * x)
    grid = encoded.grid.range
    assert not encoded.codes.is_floating_point()
    assert grid.low <= int(encoded.codes.min()) and int(encoded.codes.max()) <= grid.high
    assert grid.bits == plan.bits
    back = unpack(pack(encoded.codes.to(torch.int16) - grid.low, grid.bits), grid.bits, x.numel())
    assert torch.equal(back.reshape(shape).to(torch.int16) + grid.low, encoded.codes.to(torch.int16))


@settings(deadline=None, max_examples=40)
@given(plans(), st.integers(0, 1000))
def test_values_inside_the_grid_move_by_half_the_distance_of_two_points_at_most(case, seed):
    plan, shape = case
    quantizer, x = calibrated(plan, shape, seed)
    encoded = quantizer.encode(x)
    rows = quantizer.relative(x)[0]
    moved = rows if quantizer.before is None else rows + quantizer.before
    value = encoded.grid.points(encoded.codes) * encoded.step
    inside = (encoded.codes > encoded.grid.range.low) & (encoded.codes < encoded.grid.range.high)
    gap = encoded.grid.table.diff().max() if isinstance(encoded.grid, TableGrid) else 1.0
    assert ((value - moved).abs() <= gap * encoded.step / 2 * (1 + 1e-4))[inside].all()


@settings(deadline=None, max_examples=30)
@given(plans(), st.integers(0, 1000))
def test_a_quantizer_is_built_again_from_its_description_and_state(case, seed):
    plan, shape = case
    quantizer, x = calibrated(plan, shape, seed)
    again = build_quantizer(quantizer.describe())
    again.load_state_dict(quantizer.state_dict())
    assert torch.equal(again(x), quantizer(x))


@settings(deadline=None, max_examples=30)
@given(plans(), st.integers(0, 1000), st.sampled_from([2.0**-30, 0.5, 2.0**20]))
def test_rows_that_are_relative_to_their_largest_element_may_have_any_size(case, seed, scale):
    plan, shape = case
    quantizer, x = calibrated(plan.model_copy(update={"dynamic": True}), shape, seed)
    if plan.method not in FOR_WEIGHTS:
        assert torch.equal(quantizer(scale * x), scale * quantizer(x))


@pytest.mark.parametrize("method", sorted(WITH_SHIFTS | {"uniform"}))
def test_a_row_of_zeros_is_relative_to_none(method):
    quantizer, x = calibrated(quantizer_plan(method=method, bits=4, step_shape=(), dynamic=True), (2, 4, 6), 0)
    x[0, 1] = 0.0
    assert quantizer(x)[0, 1].abs().max() < 1e-37  # a grid without a zero has none


@pytest.mark.parametrize("keys", [16, 4096])
def test_even_rows_have_as_many_levels_as_sharp_ones(keys):
    sharpness = torch.tensor([0.01, 8.0]).view(2, 1, 1)
    rows = (sharpness * torch.randn(2, 5, keys, generator=torch.Generator().manual_seed(0))).softmax(-1)
    quantizer = build_quantizer(quantizer_plan(method="uniform", bits=8, step_shape=(), dynamic=True, signed=False))
    quantizer.observe(rows)
    quantizer.finish()
    assert bool(((quantizer(rows) - rows).abs() <= rows.amax(-1, keepdim=True) * (0.5 / 255 + 1e-6)).all())


@pytest.mark.parametrize("bits", range(1, 9))
def test_grids_have_exactly_two_to_the_bits_codes(bits):
    for signed in (True, False):
        grid = CodeRange.of_bits(bits, signed=signed)
        assert grid.high - grid.low + 1 == grid.count == len(grid.all()) == 2**bits
        assert grid.bits == bits
        assert grid.signed is signed


@pytest.mark.parametrize("method", sorted(WITH_SHIFTS | {"uniform"}))
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(method, poison):
    quantizer = build_quantizer(quantizer_plan(method=method, bits=4, step_shape=()))
    quantizer.observe(torch.tensor([1.0, poison]))
    with pytest.raises(ValueError, match="finite"):
        quantizer.finish()


@pytest.mark.parametrize("method", sorted(WITH_SHIFTS | {"uniform"}))
def test_a_quantizer_that_saw_nothing_says_so(method):
    with pytest.raises(ValueError, match="no "):
        build_quantizer(quantizer_plan(method=method, bits=4, step_shape=())).finish()


@pytest.mark.parametrize("method", sorted(QUANTIZERS.methods()))
def test_rows_of_zeros_give_finite_values(method):
    step_shape = max(shapes_of(method))
    weight = torch.zeros(shapes_of(method)[step_shape])
    quantizer = build_quantizer(quantizer_plan(method=method, bits=2, step_shape=step_shape, shape=tuple(weight.shape)))
    quantizer.observe(weight)
    quantizer.finish()
    assert quantizer(weight).abs().max() < 1e-4


SMALL = {
    "statsq": {"method": "statsq"},
    "quest": {"method": "quest"},
    "lsq, started at the mean": {"method": "lsq"},
    "lsq, started at the least error": {"method": "lsq", "start": "mse"},
    "lcq": {"method": "lcq"},
    "daq": {"method": "daq"},
    "denseshift of one latent weight": {"method": "denseshift", "decomposition": False},
    "lsq with shifts, started at the least error": {"method": "lsq", "start": "mse", "shift_shape": (6, 1)},
} | {
    f"uniform, {range_}, {kind}": {"method": "uniform", "range": range_, "percentile": 99.0} | settings
    for range_ in ("minmax", "percentile", "mse")
    for kind, settings in {
        "symmetric": {},
        "asymmetric": {"symmetric": False},
        "both ends": {"symmetric": False, "whole": False},
    }.items()
}


@pytest.mark.parametrize(
    ("name", "bits"), [(name, bits) for name in SMALL for bits in (2, 8) if bits in widths(SMALL[name]["method"])]
)
def test_the_error_is_as_small_of_small_tensors_relative_to_their_size(name, bits):
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    errors = []
    for sigma in (1.0, 1e-4, 1e-6):
        quantizer = build_quantizer(quantizer_plan(bits=bits, step_shape=(6, 1), **SMALL[name]))
        quantizer.observe(sigma * x)
        quantizer.finish()
        errors.append(((quantizer(sigma * x) - sigma * x).std() / sigma).item())
    assert errors[1:] == pytest.approx([errors[0]] * 2, rel=1e-2)


@pytest.mark.parametrize("name", ["lsq, started at the mean", "uniform, minmax, symmetric"])
def test_learning_goes_on_as_well_with_small_tensors(name):
    x = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    gradients = []
    for sigma in (1.0, 2.0**-20):
        quantizer = build_quantizer(quantizer_plan(bits=4, step_shape=(6, 1), **SMALL[name]))
        quantizer.observe(sigma * x)
        quantizer.finish()
        leaf = (sigma * x).requires_grad_()
        quantizer(leaf).backward(x)
        gradients.append([leaf.grad, quantizer.step.grad])
    for large, small in zip(*gradients, strict=True):
        assert large is small is None or torch.equal(large, small)


@pytest.mark.parametrize("shape", [(8, 3, 197, 64), (300_000,)])
def test_rows_relative_to_their_largest_give_the_same_value_whole_and_in_parts(shape):
    plan = quantizer_plan(method="uniform", bits=4, step_shape=(), dynamic=True, symmetric=False)
    quantizer, x = calibrated(plan, shape, 0)
    value = quantizer(x)
    assert torch.equal(value, quantizer.encode(x).decode())
    assert torch.equal(quantizer(x.clone().requires_grad_()), value)
