"""The plain fake quantizer against its definition, and the fast one against the plain one."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ofqctl.grids import AffineGrid, CodeRange, IntegerGrid, TableGrid
from ofqctl.quantizers import build_quantizer, computed_again
from ofqctl.quantizers.fake_quantize import fake_quantize
from ofqctl.quantizers.reference import fake_quantize as plain
from ofqctl.recipe.plan import quantizer_plan

SHAPE = (4, 5, 6)
SHAPES = [((), (1,)), ((5, 1), (6,)), ((6,), (5, 1)), ((5, 1), None)]  # of steps and shifts


@st.composite
def evenly_spaced(draw):
    """A grid that the fast one computes, and shapes of steps and shifts."""
    codes = CodeRange.of_bits(draw(st.integers(1, 8)), signed=draw(st.booleans()))
    shapes = draw(st.sampled_from(SHAPES))
    offset = draw(st.sampled_from(["none", "half", "whole", "any"]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    if offset == "none":
        return IntegerGrid(codes), shapes
    offsets = {
        "half": torch.tensor(0.5),
        "whole": -torch.randint(0, codes.count, shapes[0], generator=random).float(),
        "any": 3 * torch.randn(shapes[0], generator=random),
    }
    return AffineGrid(codes, offsets[offset], offset == "whole"), shapes


def leaves(grid, shapes, seed):
    """A tensor that reaches beyond the grid, steps and shifts."""
    torch.manual_seed(seed)
    step = torch.rand(shapes[0]) * 2 / max(1, grid.range.high) + 0.01
    shifts = [None, None] if shapes[1] is None else [torch.randn(shapes[1]) * 0.1 for _ in range(2)]
    return [torch.randn(SHAPE), step, *shifts]


def gradients(compute, tensors, weight, *, on_codes=False):
    """The value, and the gradients of the sum of its product with ``weight``."""
    own = [None if t is None else t.clone().requires_grad_() for t in tensors]
    value = compute(*own)
    if on_codes:
        with computed_again(value):
            total = (value @ weight.transpose(-2, -1)).square().sum()
    else:
        total = (value * weight).sum()
    total.backward()
    return value.detach(), [leaf.grad for leaf in own if leaf is not None]


@pytest.mark.parametrize("on_codes", [False, True])
@settings(deadline=None, max_examples=100)
@given(evenly_spaced(), st.integers(0, 10_000))
@example((AffineGrid(CodeRange(0, 255), torch.tensor(0.5), whole=False), SHAPES[0]), 185)  # sums that cancel
def test_the_fast_one_is_the_plain_one_forward_to_the_bit_and_backward(on_codes, case, seed):
    (grid, shapes), weight = case, torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    tensors = leaves(grid, shapes, seed)
    fast, got = gradients(lambda x, s, b, a: fake_quantize(x, s, grid, b, a), tensors, weight, on_codes=on_codes)
    slow, expected = gradients(lambda x, s, b, a: plain(x, s, grid, b, a), tensors, weight)
    if on_codes:
        slow, expected = gradients(lambda x, s, b, a: plain(x, s, grid, b, a), tensors, weight, on_codes=True)
    with torch.no_grad():
        untrained = fake_quantize(tensors[0], tensors[1], grid, *tensors[2:])
    assert torch.equal(fast, slow) and torch.equal(untrained, slow)
    # distances have the error of a position in steps; in the gradient of a step they are summed, and may cancel
    above = 2 * slow @ weight.transpose(-2, -1) @ weight if on_codes else weight  # the gradient of the value
    terms = float(above.abs().sum()) * (max(1, grid.range.high) * weight.numel()) ** -0.5
    slack = [0.0, terms * 2e-7 * grid.range.count, 0.0, 0.0]
    for one, other, rounded in zip(got, expected, slack, strict=False):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()) + rounded + 1e-7)


@pytest.mark.parametrize("step", [0.0, -0.3])
def test_a_step_that_learning_took_to_0_or_below_is_tiny_and_still_has_its_gradient(step):
    grid, x = IntegerGrid(CodeRange(-2, 1)), torch.tensor([1.0, -1.0, 0.0])
    for compute in (fake_quantize, plain):
        learned = torch.tensor(step, requires_grad=True)
        value = compute(x, learned, grid)
        value.backward(torch.tensor([1.0, 1.0, 1.0]))
        assert value.abs().max() < 1e-20
        assert learned.grad.item() == pytest.approx((1 - 2) / 3**0.5)


TABLES = {
    "powers of two": [-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0],
    "three points": [-0.7, 0.1, 2.5],
}


@pytest.mark.parametrize("name", TABLES)
def test_the_plain_one_is_the_definition_entry_by_entry(name):
    table = torch.tensor(TABLES[name])
    grid = TableGrid(CodeRange(0, len(table) - 1), table)
    x, weight = (
        torch.linspace(-12.1, 12.3, 97)[None] * 0.3,
        torch.randn(1, 97, generator=torch.Generator().manual_seed(0)),
    )
    step = torch.tensor(0.3)
    value, (of_x, of_step) = gradients(lambda x, s, b, a: plain(x, s, grid, b, a), [x, step, None, None], weight)
    expected_step = 0.0
    for index, entry in enumerate(x[0].tolist()):
        position = entry / 0.3
        point = min(table.tolist(), key=lambda p: (abs(p - position), p))
        inside = table[0] <= position <= table[-1]
        assert value[0, index].item() == pytest.approx(0.3 * point, rel=1e-6)
        assert of_x[0, index].item() == pytest.approx(weight[0, index].item() if inside else 0.0)
        expected_step += weight[0, index].item() * (point - position if inside else point)
    scale = (grid.range.high * 97) ** -0.5
    assert of_step.item() == pytest.approx(scale * expected_step, rel=1e-4)


def test_a_learned_table_gets_a_gradient_at_the_points_that_were_taken():
    table = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    value = plain(torch.tensor([1.9, 2.1, -5.0]), torch.tensor(0.5), TableGrid(CodeRange(-1, 1), table))
    value.sum().backward()
    assert table.grad.tolist() == [0.5, 0.0, 1.0]


def test_the_fast_one_takes_any_grid_and_the_type_of_autocast():
    grid = TableGrid(CodeRange(-1, 1), torch.tensor([-1.0, 0.25, 2.0]))
    x = torch.randn(4, 6, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        value = fake_quantize(x, torch.tensor(0.5), grid)
    assert value.dtype == torch.bfloat16
    assert torch.equal(value, plain(x, torch.tensor(0.5), grid).bfloat16())
    value.sum().backward()
    assert x.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(("signed", "points"), [(True, {-0.5, 0.5}), (False, {0.0, 1.0})])
@pytest.mark.parametrize("method", ["lsq", "uniform"])
def test_of_one_bit_a_signed_grid_has_no_zero_and_an_unsigned_one_has(method, signed, points):
    x = torch.randn(64) if signed else torch.rand(64)
    start = {"start": "mse"} if method == "lsq" else {}
    quantizer = build_quantizer(quantizer_plan(method=method, bits=1, step_shape=(), signed=signed, **start))
    quantizer.observe(x)
    quantizer.finish()
    encoded = quantizer.encode(x)
    assert set((encoded.decode() / encoded.step).tolist()) == points
    assert torch.equal(quantizer(x), encoded.decode())
    assert ((encoded.decode() - x).abs() <= x.abs().max()).all()


def test_statsq_of_one_bit_is_the_sign_times_the_mean_magnitude():
    weight = torch.randn(3, 8)
    value = build_quantizer(quantizer_plan(method="statsq", bits=1, step_shape=(3, 1)))(weight)
    assert torch.allclose(value, weight.sign() * weight.abs().mean(1, keepdim=True))
