"""Differences between rows, what is marked as best, plots, and the verdicts on claims."""

import math
import statistics
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ofqctl.errors import StudyError
from ofqctl.results.study import FigureKind
from ofqctl.studies.averages import averaged, crossed_error
from ofqctl.studies.comparing import checked_claim
from ofqctl.studies.definition import Claim, Plot, Study, Table
from ofqctl.studies.figures import MeasuredRow, SeededRow, difference, figures_of
from ofqctl.studies.measures import kind_of
from ofqctl.studies.predictions import Predictions
from ofqctl.studies.rows import Row
from ofqctl.studies.tables import plot_of, table_of

IMAGES = tuple(f"{number}.png" for number in range(6))
KIND = partial(kind_of, own={})


def row(name, seeds, images=IMAGES, **labels):
    """A row with top-1 of each image by seed; None for a seed of which no images are known."""
    labels = {"row": name, **labels}
    made = SeededRow(labels, wanted=len(seeds))
    for seed, values in seeds.items():
        known = None if values is None else Predictions(tuple(images), {"top1": np.array(values, dtype=float)})
        made.seeds[seed] = MeasuredRow(Row(labels, None, {}, None), {}, known, ())
    return made


def figures(rows, **means):
    """Figures of rows: that of their images as top-1, and a list over seeds for each other one."""
    found = {
        one.name: {"top1": averaged(t.mean(axis=1).tolist(), t)} for one in rows if (t := one.table("top1")) is not None
    }
    for name, values in means.items():
        for one, own in zip(rows, values, strict=True):
            found.setdefault(one.name, {})[name] = averaged(own)
    return found


def drawn(seed, count=1, high=0.5):
    return (np.random.default_rng(seed).random((count, len(IMAGES))) < high).astype(float) * 100


class TestDifferences:
    def test_rows_with_the_same_seeds_are_compared_seed_by_seed_whatever_their_order(self):
        mine, theirs = drawn(0, 3), drawn(1, 3)
        first = row("a", {"0": mine[0], "1": mine[1], "2": mine[2]})
        second = row("b", {"2": theirs[2], "0": theirs[0], "1": theirs[1]})
        found = difference(first, second, "top1")
        assert found.values == pytest.approx([(mine[n] - theirs[n]).mean() for n in range(3)])
        assert found.error == pytest.approx(crossed_error(mine - theirs))

    def test_what_moves_both_rows_alike_is_no_error_of_the_difference(self):
        base = drawn(0, 3) + np.array([[0.0], [20.0], [50.0]])
        found = difference(
            row("a", dict(zip("012", base + 1, strict=True))), row("b", dict(zip("012", base, strict=True))), "top1"
        )
        assert (found.mean, found.error) == (pytest.approx(1.0), pytest.approx(0.0, abs=1e-9))

    def test_only_seeds_that_both_have_are_compared(self):
        mine, theirs = drawn(0, 3), drawn(1, 2)
        found = difference(
            row("a", dict(zip("012", mine, strict=True))), row("b", dict(zip("21", theirs, strict=True))), "top1"
        )
        assert found.values == pytest.approx([(mine[1] - theirs[1]).mean(), (mine[2] - theirs[0]).mean()])

    def test_every_seed_is_compared_with_a_row_that_has_none(self):
        mine, float_row = drawn(0, 3), drawn(1)
        found = difference(row("a", dict(zip("012", mine, strict=True))), row("float", {"": float_row[0]}), "top1")
        assert found.values == pytest.approx((mine - float_row).mean(axis=1))
        assert found.error == pytest.approx(crossed_error(mine - float_row))

    def test_one_seed_of_each_has_the_error_over_images(self):
        mine, theirs = drawn(0), drawn(1)
        found = difference(row("a", {"0": mine[0]}), row("b", {"0": theirs[0]}), "top1")
        assert found.error == pytest.approx(statistics.stdev((mine - theirs)[0]) / math.sqrt(len(IMAGES)))

    @given(
        st.sets(st.sampled_from("0123"), min_size=1), st.sets(st.sampled_from("0123"), min_size=1), st.integers(0, 99)
    )
    @settings(max_examples=60, deadline=None)
    def test_the_other_way_round_it_is_the_same_with_the_other_sign(self, mine, theirs, drawing):
        first = row("a", dict(zip(sorted(mine), drawn(drawing, len(mine)), strict=True)))
        second = row("b", dict(zip(sorted(theirs), drawn(drawing + 1, len(theirs)), strict=True)))
        there, back = difference(first, second, "top1"), difference(second, first, "top1")
        assert there.mean == pytest.approx(-back.mean)
        assert there.error == pytest.approx(back.error)
        assert there.values == pytest.approx([-value for value in back.values])

    def test_rows_of_other_images_or_of_none_are_not_compared_image_by_image(self):
        first = row("a", {"0": drawn(0)[0]})
        assert difference(first, row("b", {"0": drawn(1)[0]}, images=IMAGES[::-1]), "top1") is None
        assert difference(first, row("b", {"0": None}), "top1") is None
        assert difference(first, row("b", {}), "top1") is None
        assert difference(first, row("b", {"0": drawn(1)[0]}), "loss") is None

    def test_rows_whose_seeds_have_other_images_are_not_compared_even_if_the_first_are_the_same(self):
        mixed, plain = row("a", {"0": drawn(0)[0]}), row("b", dict(zip("012", drawn(1, 3), strict=True)))
        mixed.seeds |= row("a", dict(zip("12", drawn(2, 2), strict=True)), images=IMAGES[::-1]).seeds
        assert difference(mixed, plain, "top1") is None
        assert difference(plain, mixed, "top1") is None


def marked(rows, means, figure="top1", kind=None, **table):
    said = Table(title="t", rows=("row",), figures=(figure,), **table)
    made = table_of(said, rows, means, (lambda _: kind) if kind else KIND)
    return {line.labels[0]: [cell.best for cell in line.cells] for line in made.lines}


class TestBest:
    def test_a_row_is_best_if_it_is_clearly_ahead_of_every_other(self):
        worst, middle, best = (
            row(name, dict(zip("01", drawn(0, 2, high), strict=True)))
            for name, high in (("w", 0), ("m", 0.1), ("b", 1.1))
        )
        rows = [worst, middle, best]
        assert marked(rows, figures(rows)) == {"w": [False], "m": [False], "b": [True]}

    def test_nothing_is_best_where_the_difference_is_within_its_error(self):
        rows = [row("a", {"0": [100, 0, 100, 0, 100, 100]}), row("b", {"0": [100, 0, 0, 100, 100, 0]})]
        assert marked(rows, figures(rows)) == {"a": [False], "b": [False]}

    def test_nothing_is_best_among_the_same_values_or_without_another_row(self):
        rows = [row(name, {"0": drawn(0)[0]}) for name in "ab"]
        assert marked(rows, figures(rows)) == {"a": [False], "b": [False]}
        assert marked(rows[:1], figures(rows)) == {"a": [False]}

    def test_times_of_one_run_have_no_error_and_so_no_best(self):
        rows = [row("a", {"": None}), row("b", {"": None})]
        assert marked(rows, figures(rows, seconds=[[1.0], [100.0]]), "seconds") == {"a": [False], "b": [False]}

    def test_times_of_several_runs_are_best_by_the_errors_over_seeds(self):
        rows = [row("a", {"": None}), row("b", {"": None})]
        clear, unclear = [[1.0, 1.1], [9.0, 9.2]], [[1.0, 9.0], [5.0, 6.0]]
        assert marked(rows, figures(rows, seconds=clear), "seconds") == {"a": [True], "b": [False]}
        assert marked(rows, figures(rows, seconds=unclear), "seconds") == {"a": [False], "b": [False]}

    def test_gains_over_different_rows_are_compared_as_gains(self):
        names = ("none 2", "more 2", "none 4", "more 4")
        values = ([0, 0, 0, 0, 0, 100], [0, 0, 0, 0, 100, 0], [100] * 5 + [0], [100] * 5 + [0])
        rows = [row(name, {"0": own}) for name, own in zip(names, values, strict=True)]
        means = figures(rows)
        for first, second in (rows[:2], rows[2:]):
            gain = difference(second, first, "top1")
            means[second.name]["top1 vs none"] = gain.model_copy(update={"against": first.name})
        assert marked([rows[1], rows[3]], means) == {"more 2": [False], "more 4": [True]}
        assert marked([rows[1], rows[3]], means, "top1 vs none") == {"more 2": [False], "more 4": [False]}

    @pytest.mark.parametrize(("ahead", "best"), [(0.0, False), (0.5, False), (20.0, True)])
    def test_a_gain_over_a_row_of_the_table_is_best_only_if_it_is_clearly_one(self, ahead, best):
        base, noise = drawn(0, 2), drawn(1, 2)
        values = {"plain": base, "worse": base - 60.0, "better": base + ahead + 0.1 * (noise - noise.mean())}
        rows = [row(name, dict(zip("01", own, strict=True))) for name, own in values.items()]
        means = figures(rows)
        for other in rows[1:]:
            gain = difference(other, rows[0], "top1")
            means[other.name]["top1 vs plain"] = gain.model_copy(update={"against": "plain"})
        found = marked(rows, means, "top1 vs plain")
        assert found == {"plain": [False], "worse": [False], "better": [best]}
        assert marked(rows[1:], means, "top1 vs plain") == {"worse": [False], "better": [True]}

    def test_times_of_different_machines_are_not_compared(self):
        rows = [row("a", {"0": None, "1": None}), row("b", {"0": None, "1": None})]
        clear = figures(rows, seconds=[[1.0, 1.1], [9.0, 9.2]])
        for seed, one in rows[1].seeds.items():
            rows[1].seeds[seed] = replace(one, machine="another")
        assert marked(rows, clear, "seconds") == {"a": [False], "b": [False]}
        assert judged(rows, clear, ["a", "b"], "seconds").verdict == "undecided"

    def test_a_row_whose_seeds_were_measured_on_different_machines_has_no_times(self):
        own = row("a", {"0": None, "1": None})
        own.seeds = {
            seed: replace(
                one, machine=seed, figures={"seconds": 1.0, "ms_8": 1.0, "peak_bytes": 1.0, "oscillating": 1.0}
            )
            for seed, one in own.seeds.items()
        }
        study = Study(name="own", description="own", rows={"a": {"command": "evaluate x"}})
        assert list(figures_of(study, own, [own])) == ["oscillating"]

    def test_an_exact_figure_is_best_by_any_difference_and_a_figure_without_direction_never(self):
        rows = [row("a", {"": None}), row("b", {"": None})]
        assert marked(rows, figures(rows, bytes=[[7.0], [6.0]]), "bytes") == {"a": [False], "b": [True]}
        neither = FigureKind(title="n", exact=True)
        assert marked(rows, figures(rows, n=[[7.0], [6.0]]), "n", neither) == {"a": [False], "b": [False]}

    def test_with_columns_the_best_of_each_line_is_marked(self):
        rows = [row(name, {"": None}, m=label) for name in "ab" for label in "xy"]
        means = figures(rows, bytes=[[1.0], [2.0], [4.0], [3.0]])
        assert marked(rows, means, "bytes", columns="m") == {"a": [True, False], "b": [False, True]}

    def test_a_study_may_have_the_best_of_each_column_marked_instead(self):
        rows = [row(name, {"": None}, m=label) for name in "ab" for label in "xy"]
        means = figures(rows, bytes=[[1.0], [5.0], [4.0], [3.0]])
        found = marked(rows, means, "bytes", columns="m", best="column")
        assert found == {"a": [True, False], "b": [False, True]}
        means = figures(rows, bytes=[[1.0], [2.0], [4.0], [3.0]])
        assert marked(rows, means, "bytes", columns="m", best="column") == {"a": [True, True], "b": [False, False]}

    def test_columns_are_in_the_order_of_the_rows_and_a_row_that_is_not_there_is_an_empty_cell(self):
        rows = [row(name, {"": None}, m=label) for name, label in ("ay", "bx", "by")]
        made = table_of(
            Table(title="t", rows=("row",), columns="m", figures=("bytes",)),
            rows,
            figures(rows, bytes=[[1.0]] * 3),
            KIND,
        )
        assert [column.title for column in made.columns] == ["y", "x"]
        assert [[cell.mean for cell in line.cells] for line in made.lines] == [[1.0, None], [1.0, 1.0]]

    def test_two_rows_on_one_cell_are_refused(self):
        rows = [row("a", {"": None}, m=label) for label in "xy"]
        with pytest.raises(StudyError, match="'a m=x' and 'a m=y' fall on one cell"):
            marked(rows, figures(rows, bytes=[[1.0], [1.0]]), "bytes")


class TestPlots:
    def test_the_front_is_by_what_is_better_and_rows_without_both_figures_are_left_out(self):
        rows = [row(name, {"": None}) for name in "abcd"]
        means = figures(rows[:3], bytes=[[1.0], [2.0], [2.0]], top5=[[50.0], [60.0], [55.0]]) | {"d": {}}
        made = plot_of(Plot(title="p", x="bytes", y="top5"), rows, means, KIND)
        assert [(point.row, point.front) for point in made.points] == [("a", True), ("b", True), ("c", False)]

    def test_there_is_no_front_of_a_figure_that_is_neither_better_high_nor_low(self):
        rows = [row(name, {"": None}) for name in "ab"]
        means = figures(rows, n=[[1.0], [2.0]], top5=[[1.0], [2.0]])
        kinds = {"n": FigureKind(title="n"), "top5": KIND("top5")}
        made = plot_of(Plot(title="p", x="n", y="top5"), rows, means, kinds.__getitem__)
        assert [point.front for point in made.points] == [False, False]


def judged(rows, means, order, figure="top1", axis="row", where=None):
    claim = Claim(name="c", paper="p", says="s", figure=figure, axis=axis, order=order, where=where or {})
    return checked_claim(claim, rows, means, KIND)


class TestClaims:
    def test_a_claim_holds_is_contradicted_or_is_undecided_by_the_differences(self):
        low, high = (
            row(name, dict(zip("01", drawn(3, 2, part), strict=True))) for name, part in (("low", 0.0), ("high", 1.1))
        )
        near = row("near", {"0": [100, 100, 100, 100, 0, 100], "1": [100, 100, 100, 0, 100, 100]})
        rows = [low, high, near]
        means = figures(rows)
        assert judged(rows, means, ["high", "low"]).verdict == "holds"
        assert judged(rows, means, ["low", "high"]).verdict == "contradicted"
        assert judged(rows, means, ["high", "near"]).verdict == "undecided"
        assert judged(rows, means, ["near", "high"]).verdict == "undecided"

    def test_of_a_figure_that_is_better_low_the_first_is_to_be_lower(self):
        rows = [row("a", {"": None}), row("b", {"": None})]
        means = figures(rows, seconds=[[1.0, 1.1], [9.0, 9.2]])
        assert judged(rows, means, ["a", "b"], "seconds").verdict == "holds"
        assert judged(rows, means, ["b", "a"], "seconds").verdict == "contradicted"

    def test_one_pair_that_contradicts_outweighs_one_that_holds_and_one_undecided_keeps_it_open(self):
        rows = [row(name, {"": None}) for name in "abc"]
        down = figures(rows, bytes=[[1.0], [3.0], [2.0]])
        made = judged(rows, down, ["a", "b", "c"], "bytes")
        assert [pair.verdict for pair in made.pairs] == ["holds", "contradicted"]
        assert made.verdict == "contradicted"
        same = judged(rows, figures(rows, bytes=[[1.0], [2.0], [2.0]]), ["a", "b", "c"], "bytes")
        assert [pair.verdict for pair in same.pairs] == ["holds", "undecided"]
        assert same.verdict == "undecided"

    def test_rows_that_differ_on_another_axis_are_compared_among_themselves(self):
        rows = [row(name, {"": None}, bits=bits) for bits in "48" for name in "ab"]
        made = judged(rows, figures(rows, bytes=[[1.0], [2.0], [4.0], [3.0]]), ["a", "b"], "bytes")
        assert [(p.first, p.second, p.difference) for p in made.pairs] == [
            ("a bits=4", "b bits=4", -1.0),
            ("a bits=8", "b bits=8", 1.0),
        ]
        only = judged(
            rows, figures(rows, bytes=[[1.0], [2.0], [4.0], [3.0]]), ["a", "b"], "bytes", where={"bits": ["4"]}
        )
        assert (len(only.pairs), only.verdict) == (1, "holds")

    def test_what_was_not_measured_is_passed_over_and_nothing_is_undecided(self):
        rows = [row(name, {"": None}) for name in "abc"]
        means = figures(rows[::2], bytes=[[1.0], [2.0]]) | {"b": {}}
        assert [(p.first, p.second) for p in judged(rows, means, ["a", "b", "c"], "bytes").pairs] == [("a", "c")]
        nothing = judged(rows, means, ["a", "b"], "bytes")
        assert (nothing.pairs, nothing.verdict) == ((), "undecided")
