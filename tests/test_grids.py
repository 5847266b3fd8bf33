"""Grids: what their points, positions, nearest codes and integers have in common."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator

from ofqctl.grids import AffineGrid, CodeRange, IntegerGrid, TableGrid, symmetric_grid, thresholds_of

QUANTIZE_LINEAR = helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["codes"])


@st.composite
def grids(draw):
    """Any grid that is the same for all steps."""
    codes = CodeRange.of_bits(draw(st.integers(1, 8)), signed=draw(st.booleans()))
    kind = draw(st.sampled_from(["integers", "offset", "whole offset", "table", "own thresholds"]))
    if kind == "integers":
        return IntegerGrid(codes)
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    if kind == "offset":
        return AffineGrid(codes, torch.randn((), generator=random) * 5)
    if kind == "whole offset":
        return AffineGrid(codes, torch.randint(-9, 9, (), generator=random).float(), whole=True)
    marks = (torch.rand(2 * codes.count - 1, generator=random) + 0.1).cumsum(0) / 2 - codes.count / 4
    return TableGrid(codes, marks[::2], marks[1::2].contiguous() if kind == "own thresholds" else None)


@given(grids())
def test_points_ascend_and_each_is_its_own_nearest_at_the_position_of_its_code(grid):
    codes = grid.range.all()
    points = grid.points(codes)
    assert (points.diff() > 0).all()
    assert torch.equal(grid.nearest(points), codes.float())
    assert torch.allclose(grid.position(points), codes.float(), atol=1e-4)
    assert torch.equal(grid.points(codes.float()), points)


@given(grids(), st.integers(0, 999))
def test_the_nearest_point_is_nearest_or_says_where_it_changes_and_changes_there(grid, seed):
    points = grid.points(grid.range.all())
    low, high = float(points[0]) - 3, float(points[-1]) + 3
    values = low + (high - low) * torch.rand(200, generator=torch.Generator().manual_seed(seed))
    distances = (values[:, None] - points).abs()
    chosen = (values - grid.points(grid.nearest(values))).abs()
    if grid.thresholds is None:
        assert torch.allclose(chosen, distances.amin(1), atol=1e-5 * float(points.abs().max() + 1))
    thresholds = thresholds_of(grid, points)
    beside = 1e-3 * float(torch.cat([points, thresholds]).sort().values.diff().amin())
    above, below = grid.nearest(thresholds + beside), grid.nearest(thresholds - beside)
    assert torch.equal(above - below, torch.ones_like(thresholds))


@given(st.integers(-300, 20), st.floats(0.01, 4.0), st.integers(0, 999))
def test_whole_offsets_give_the_codes_of_onnx_quantize_linear(offset, step, seed):
    step, zero = np.float32(step), np.clip(-offset, 0, 255).astype(np.uint8)
    halves = torch.randint(-600, 600, (200,), generator=torch.Generator().manual_seed(seed)) / 2
    values = torch.cat([halves * step, torch.randn(200, generator=torch.Generator().manual_seed(seed)) * 50])
    grid = AffineGrid(CodeRange(0, 255), torch.tensor(-float(zero)), whole=True)
    (expected,) = ReferenceEvaluator(QUANTIZE_LINEAR).run(None, {"x": values.numpy(), "step": step, "zero": zero})
    assert np.array_equal(grid.nearest(values / step).numpy(), expected)


@given(grids())
def test_positions_are_halfway_at_the_thresholds_and_go_on_beyond_the_ends(grid):
    points = grid.points(grid.range.all())
    halfway = grid.position(thresholds_of(grid, points))
    assert torch.allclose(halfway, grid.range.all()[:-1] + 0.5, atol=1e-3)
    if grid.thresholds is not None:
        return
    ends = torch.stack([points[0] - points.diff()[0], points[-1] + points.diff()[-1]])
    assert torch.allclose(grid.position(ends), torch.tensor([grid.range.low - 1.0, grid.range.high + 1.0]), atol=1e-3)


@given(grids())
def test_a_grid_that_stands_on_integers_is_made_of_them_again(grid):
    integers = grid.on_integers()
    if integers is None:
        assert isinstance(grid, TableGrid)
        return
    assert integers.multiplier & (integers.multiplier - 1) == 0
    assert integers.levels[0] >= 0 and (integers.levels.diff() > 0).all()
    points = (integers.levels + integers.zero + integers.rest) / integers.multiplier
    assert torch.allclose(points, grid.points(grid.range.all()), atol=1e-4)


@pytest.mark.parametrize(
    ("points", "multiplier", "integers"),
    [
        ([-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0], 1, [-8, -4, -2, -1, 1, 2, 4, 8]),
        ([-1.5, -0.25, 0.5, 3.0], 4, [-6, -1, 2, 12]),
        ([1.0, 2.0, 4.0, 8.0], 1, [1, 2, 4, 8]),
        ([-1.0, 0.0, 1 / 3, 1.0], None, None),
        ([-300.0, 0.0, 1.0, 2.0], None, None),
    ],
)
def test_tables_find_the_power_of_two_that_makes_integers_of_them(points, multiplier, integers):
    found = TableGrid(CodeRange(0, len(points) - 1), torch.tensor(points)).on_integers()
    if integers is None:
        assert found is None
        return
    assert found.multiplier == multiplier
    assert (found.levels + found.zero).tolist() == integers
    assert not found.even


@pytest.mark.parametrize(
    ("offset", "multiplier", "zero", "rest"),
    [([-3.0, 0.0], 1, [-3, 0], [0.0, 0.0]), ([0.5, 2.0], 2, [1, 4], [0.0, 0.0]), ([0.25, 1.0], 1, [0, 1], [0.25, 0.0])],
)
def test_offsets_are_integers_or_halves_or_leave_a_rest(offset, multiplier, zero, rest):
    found = AffineGrid(CodeRange(0, 3), torch.tensor(offset)).on_integers()
    assert (found.multiplier, found.zero.tolist(), found.rest.tolist(), found.even) == (multiplier, zero, rest, True)


def test_what_is_stored_of_a_grid_gives_it_back_and_constants_of_a_method_are_not_stored():
    codes = CodeRange.of_bits(2, signed=True)
    assert IntegerGrid(codes).tensors() == AffineGrid(codes, torch.tensor(0.5)).tensors() == {}
    offset, table = torch.randn(3, 1), torch.tensor([-1.0, 0.0, 1.0, 5.0])
    assert torch.equal(AffineGrid(codes, torch.zeros(3, 1)).with_tensors({"offset": offset}).offset, offset)
    assert torch.equal(TableGrid(codes, torch.arange(4.0)).with_tensors({"points": table}).table, table)
    assert TableGrid(codes, table).tensors()["points"] is table
    thresholds = torch.tensor([-0.1, 0.9, 1.1])
    again = TableGrid(codes, torch.arange(4.0)).with_tensors(TableGrid(codes, table, thresholds).tensors())
    assert torch.equal(again.thresholds, thresholds)


def test_a_part_of_a_grid_has_the_zero_points_of_the_part():
    codes, offset = CodeRange.of_bits(2, signed=True), torch.arange(6.0).view(6, 1)
    assert torch.equal(AffineGrid(codes, offset).map(lambda t: t[2:4]).offset, offset[2:4])
    for shared in (IntegerGrid(codes), AffineGrid(codes, torch.tensor(0.5)), TableGrid(codes, torch.arange(4.0))):
        assert shared.map(lambda t: t[2:4]) is shared


def test_a_table_has_one_point_for_each_code_and_one_threshold_between_two():
    with pytest.raises(ValueError, match="4 codes"):
        TableGrid(CodeRange(0, 3), torch.arange(3.0))
    with pytest.raises(ValueError, match="4 codes have one less"):
        TableGrid(CodeRange(0, 3), torch.arange(4.0), torch.arange(4.0))


@pytest.mark.parametrize("bits", range(1, 9))
def test_a_grid_around_zero_has_zero_unless_it_has_one_bit_and_a_sign(bits):
    for signed in (True, False):
        grid = symmetric_grid(CodeRange.of_bits(bits, signed=signed))
        points = grid.points(grid.range.all()).tolist()
        assert (0.0 in points) == (bits > 1 or not signed)
    assert symmetric_grid(CodeRange.of_bits(1, signed=True)).points(torch.tensor([-1, 0])).tolist() == [-0.5, 0.5]
