"""The range that an estimator fits: what share of the values it covers."""

import pytest
import torch

from ofqctl.grids import CodeRange
from ofqctl.quantizers import build_quantizer
from ofqctl.quantizers.ranges import RangeEstimator
from ofqctl.recipe.plan import quantizer_plan

SKEWED = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)).exp() - 1.0  # a long tail on one side
DATA = {
    "both signs, even tails": torch.randn(2, 20_000, generator=torch.Generator().manual_seed(1)),
    "both signs, one long tail": SKEWED,
    "few negatives": SKEWED + 0.93,
    "no negatives": SKEWED.abs(),
    "no positives": -SKEWED.abs(),
}
GRIDS = {
    "symmetric, signed": (CodeRange.of_bits(8, signed=True), {"symmetric": True}),
    "symmetric, unsigned": (CodeRange.of_bits(8, signed=False), {"symmetric": True}),
    "whole zero points": (CodeRange.of_bits(8, signed=False), {"symmetric": False}),
    "zero points between codes": (CodeRange.of_bits(8, signed=False), {"symmetric": False, "whole": False}),
}


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", GRIDS)
def test_a_range_covers_as_many_percent_of_the_values_as_its_percentile_says(kind, data, percentile):
    grid, form = GRIDS[kind]
    rows = DATA[data]
    if kind == "symmetric, unsigned":
        rows = rows.abs()  # an unsigned grid reaches no negatives, whatever its range
    estimator = RangeEstimator("percentile", percentile)
    estimator.observe(rows)
    step, fitted = estimator.fit(grid, **form)
    half = 0.5 * step if form == {"symmetric": False} else 1e-4 * step  # what rounding the zero point moves the ends
    low, high = (step * fitted.points(torch.tensor(code)) for code in (grid.low, grid.high))
    tightest = ((rows >= low + half) & (rows <= high - half)).float().mean(1)
    widest = ((rows >= low - half) & (rows <= high + half)).float().mean(1)
    assert (100.0 * tightest <= percentile + 0.011).all(), tightest
    assert (100.0 * widest >= percentile - 0.011).all(), widest


def test_a_percentile_of_100_is_the_range_from_smallest_to_largest_value():
    for kind, (grid, form) in GRIDS.items():
        for data, rows in DATA.items():
            fits = []
            for method in ("percentile", "minmax"):
                estimator = RangeEstimator(method, 100.0)
                estimator.observe(rows.abs() if kind == "symmetric, unsigned" else rows)
                step, fitted = estimator.fit(grid, **form)
                fits.append((step, step * fitted.points(torch.tensor(grid.low))))
            for one, other in zip(*fits, strict=True):
                assert torch.allclose(one, other, rtol=0.01), (kind, data)


def test_both_tails_of_an_asymmetric_grid_are_cut_alike():
    rows = DATA["both signs, one long tail"]
    settings = {"symmetric": False, "range": "percentile", "percentile": 98}
    quantizer = build_quantizer(quantizer_plan(method="uniform", bits=8, step_shape=(2, 1), **settings))
    quantizer.observe(rows)
    quantizer.finish()
    codes = quantizer.encode(rows).codes
    for outermost in (0, 255):
        assert 0.009 < float((codes == outermost).float().mean()) < 0.03
