"""Means, spreads, errors and fronts against definitions written out here."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ofqctl.studies.averages import averaged, crossed_error, front

NUMBERS = st.floats(-100, 100, allow_nan=False, width=32)
FEW = st.integers(-3, 3).map(float)


def crossed_by_hand(table):
    """The variance of the mean of a crossed table, from sums of squares, as textbooks have it."""
    seeds, images = len(table), len(table[0])
    total = sum(map(sum, table))
    correction = total**2 / (seeds * images)
    of_seeds = sum(sum(line) ** 2 for line in table) / images - correction
    of_images = sum(sum(column) ** 2 for column in zip(*table, strict=True)) / seeds - correction
    of_all = sum(value**2 for line in table for value in line) - correction
    rest = (of_all - of_seeds - of_images) / ((seeds - 1) * (images - 1))
    return max(of_seeds / (seeds - 1) + of_images / (images - 1) - rest, rest) / (seeds * images)


@given(
    st.tuples(st.integers(2, 4), st.integers(2, 6)).flatmap(lambda shape: arrays(np.float64, shape, elements=NUMBERS))
)
@settings(max_examples=100, deadline=None)
def test_the_error_over_seeds_and_images_is_that_of_the_analysis_of_variance(table):
    by_hand = crossed_by_hand(table.tolist())
    assert crossed_error(table) ** 2 == pytest.approx(by_hand, rel=1e-6, abs=1e-8)


@given(st.lists(NUMBERS, min_size=2, max_size=20))
@settings(deadline=None)
def test_with_one_seed_the_error_is_that_over_images(values):
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert crossed_error(np.array([values])) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("of_seeds", "of_images", "rest"), [(1.0, 2.0, 3.0), (0.3, 1.0, 0.5), (2.0, 0.5, 1.0)])
def test_the_error_estimates_how_much_means_of_such_tables_vary(of_seeds, of_images, rest):
    seeds, images, times = 4, 30, 3000
    draw = np.random.default_rng(0).normal
    tables = draw(0, of_seeds, (times, seeds, 1)) + draw(0, of_images, (times, 1, images))
    tables = tables + draw(0, rest, (times, seeds, images))
    true = of_seeds**2 / seeds + of_images**2 / images + rest**2 / (seeds * images)
    assert np.var(tables.mean(axis=(1, 2))) == pytest.approx(true, rel=0.1)
    assert np.mean([crossed_error(table) ** 2 for table in tables]) == pytest.approx(true, rel=0.1)


@given(arrays(np.float64, (3, 4), elements=FEW))
@settings(max_examples=50, deadline=None)
def test_the_error_is_zero_only_if_values_do_not_depend_on_seed_or_image_beyond_a_sum(table):
    by_seed, by_image = table - table.mean(axis=1, keepdims=True), table - table.mean(axis=0, keepdims=True)
    if abs(by_seed).max() > 1e-9 or abs(by_image).max() > 1e-9:
        assert crossed_error(table) > 0


def test_tables_in_which_seeds_and_images_cancel_have_an_error():
    assert crossed_error(np.array([[6.0, 4.0], [4.0, 6.0]])) == pytest.approx(math.sqrt(4 / 4))


def test_with_one_image_the_error_is_that_over_seeds_and_with_one_seed_it_is_not_known():
    assert averaged([1.0, 3.0], np.array([[1.0], [3.0]])).error == pytest.approx(1.0)
    assert averaged([1.0], np.array([[1.0]])).error is None


@given(st.lists(NUMBERS, min_size=2, max_size=9))
def test_a_figure_is_the_mean_with_the_standard_deviation_and_the_standard_error_over_seeds(values):
    found = averaged(values)
    assert found.mean == pytest.approx(statistics.mean(values), abs=1e-9)
    assert found.spread == pytest.approx(statistics.stdev(values), abs=1e-9)
    assert found.error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), abs=1e-9)
    assert found.values == tuple(values)


def test_one_value_has_neither_spread_nor_error():
    found = averaged([7.0])
    assert (found.mean, found.spread, found.error) == (7.0, None, None)


@given(st.lists(st.tuples(FEW, FEW), max_size=12), st.booleans(), st.booleans())
def test_the_front_is_what_no_other_point_beats(points, x_higher, y_higher):
    def gain(a, b, higher):
        return a - b if higher else b - a

    def beats(one, other):
        gains = gain(one[0], other[0], x_higher), gain(one[1], other[1], y_higher)
        return min(gains) >= 0 and max(gains) > 0

    by_hand = [not any(beats(other, one) for other in points) for one in points]
    assert front(points, x_higher=x_higher, y_higher=y_higher) == by_hand


@given(st.lists(st.tuples(FEW, FEW), min_size=1, max_size=12))
def test_a_front_has_a_point_and_does_not_depend_on_the_order_of_points(points):
    found = front(points, x_higher=True, y_higher=False)
    assert any(found)
    assert front(points[::-1], x_higher=True, y_higher=False) == found[::-1]
