"""The recipes that are compared do the same work, and differ in what they compare."""

import pytest

from ofqctl.recipe.catalogue import load, names

ROWS = ("lsq", "lsq_dampen", "lsq_freeze", "statsq", "statsq_qkr", "ofq")
REMEDIES = {"lsq_dampen": {"dampening"}, "lsq_freeze": {"freezing"}, "ofq": {"cga"}}


def test_every_row_is_shipped():
    assert {name for name in names() if name.startswith("bench/oscillation/")} == {
        f"bench/oscillation/{r}" for r in ROWS
    }


@pytest.mark.parametrize("row", ROWS)
def test_rows_differ_in_weights_merging_and_remedies_alone(row):
    recipe, base = load(f"bench/oscillation/{row}"), load("bench/imagenette_ofq_w2a2")
    assert recipe.weights.method == ("lsq" if row.startswith("lsq") else "statsq")
    assert recipe.attention.qkr == (row in ("statsq_qkr", "ofq"))
    for same in ("activations", "first", "last", "calibration"):
        assert getattr(recipe, same) == getattr(base, same)
    training, expected = recipe.training, base.training
    for same in ("batch_size", "optimizer", "augmentation", "distillation", "tracking", "ema"):
        assert getattr(training, same) == getattr(expected, same)
    assert [p.epochs for p in training.phases] == [4, 1]
    remedies = {name for p in training.phases for name in ("cga", "freezing", "dampening") if getattr(p, name)}
    assert remedies == REMEDIES.get(row, set())
    plain = {"cga": None, "freezing": None, "dampening": None, "name": ""}
    schedules = [[p.model_copy(update=plain) for p in phases] for phases in (training.phases, expected.phases)]
    assert schedules[0] == schedules[1]


def test_ofq_is_the_benchmark_recipe_itself():
    one, base = load("bench/oscillation/ofq"), load("bench/imagenette_ofq_w2a2")
    told = {"name": "", "description": ""}
    assert one.model_copy(update=told) == base.model_copy(update=told)


def test_a_word_that_yaml_takes_for_a_truth_value_is_no_key():
    from ofqctl.remedies import Dampening, Freezing

    keys = {*Dampening.model_fields, *Freezing.model_fields}
    assert not keys & {"on", "off", "yes", "no", "y", "n"}
