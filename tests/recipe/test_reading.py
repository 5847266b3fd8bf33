"""Recipes: the shipped ones, what --set does, and what a person is told about faults."""

import pickle
import subprocess
import sys

import pytest

from ofqctl.errors import RecipeError
from ofqctl.recipe import Recipe
from ofqctl.recipe.catalogue import load, names
from ofqctl.recipe.reading import build, change, parse, to_yaml


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_is_valid_and_knows_its_name(name):
    recipe = load(name)
    assert recipe.name == name
    assert recipe.description


@pytest.mark.parametrize("name", names())
def test_a_recipe_written_out_reads_back_the_same(name):
    recipe = load(name)
    assert build(parse(to_yaml(recipe), where="text"), where="text") == recipe


@pytest.mark.parametrize("name", names())
def test_a_recipe_can_be_sent_to_another_process(name):
    recipe = load(name)
    assert pickle.loads(pickle.dumps(recipe)) == recipe


def test_listing_recipes_does_not_need_torch():
    code = "import sys, ofqctl.recipe.catalogue as c; c.overview(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_set_changes_one_value_and_leaves_the_rest():
    recipe = load("ptq/mse", ["weights.bits=3", "attention.qkr=true", "calibration.images=7"])
    assert (recipe.weights.bits, recipe.attention.qkr, recipe.calibration.images) == (3, True, 7)
    assert recipe.weights.range == "mse"


def test_set_reaches_into_lists_and_makes_what_is_missing():
    values = {"layers": [{"target": "a"}]}
    changed = change(values, ["layers.0.weights.bits=4", "last.weights.bits=6"])
    assert changed == {"layers": [{"target": "a", "weights": {"bits": 4}}], "last": {"weights": {"bits": 6}}}
    assert values == {"layers": [{"target": "a"}]}


def test_three_faults_are_reported_at_once_with_their_paths():
    values = {"weights": {"bits": 9}, "activations": {"method": "magic"}, "calibration": {"images": 0}}
    with pytest.raises(RecipeError) as caught:
        build(values, where="mine.yaml")
    text = caught.value.message
    assert text.startswith("mine.yaml: 3 errors")
    for path in ("weights.bits", "activations.method", "calibration.images"):
        assert path in text


@pytest.mark.parametrize("bits", [0, 9, 16, -2, "two", 2.5, True, None])
def test_other_widths_are_refused_with_the_value_seen(bits):
    with pytest.raises(RecipeError, match=r"weights\.bits"):
        build({"weights": {"bits": bits}}, where="x")


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
def test_the_allowed_widths_are_taken(bits):
    assert build({"weights": {"bits": bits}}, where="x").weights.bits == bits


@pytest.mark.parametrize(
    ("values", "suggestion"),
    [({"wieghts": {}}, "weights"), ({"weights": {"bit": 4}}, "bits"), ({"layers": [{"taget": "a"}]}, "target")],
)
def test_an_unknown_key_gets_the_closest_one(values, suggestion):
    with pytest.raises(RecipeError, match=f"did you mean '{suggestion}'"):
        build(values, where="x")


@pytest.mark.parametrize("text", ["weights: [", "a: b: c", "- just\n- a list", "42", ""])
def test_text_that_is_no_mapping_is_refused(text):
    with pytest.raises(RecipeError, match="mine"):
        parse(text, where="mine")


def test_an_unknown_recipe_gets_the_closest_name():
    with pytest.raises(RecipeError) as caught:
        load("ptq/minmx")
    assert caught.value.hint == "did you mean 'ptq/minmax'?"


@pytest.mark.parametrize("assignment", ["weights.bits", "=3", "weights.bits.deep=3"])
def test_a_set_option_that_cannot_be_carried_out_says_why(assignment):
    with pytest.raises(RecipeError, match="--set"):
        load("ptq/mse", [assignment])


def test_recipes_cannot_be_changed_after_they_were_made():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().name = "other"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"stage": "erq", "rigde": 1}, r"ptq\.0\.rigde: unknown key; did you mean 'ridge'\?"),
        ({"stage": [10**12]}, r"ptq\.0\.stage: '\[1000000000000\]' is unknown; allowed are "),
        ({"stage": "reconstuct"}, r"ptq\.0\.stage: 'reconstuct' is unknown; did you mean 'reconstruct'\?"),
        ({"stage": "magic"}, r"ptq\.0\.stage: 'magic' is unknown; allowed are erq, evolq, "),
        ({"steps": 3}, r"ptq\.0\.stage: is missing; it names a stage of post-training quantization"),
        ({"step": "erq"}, r"ptq\.0\.stage: is missing; did you mean 'stage' in place of 'step'\?"),
        ({"stage": "evolq", "loss": "x"}, r"ptq\.0\.loss: input should be 'infonce'"),
    ],
)
def test_a_faulty_stage_is_reported_with_what_is_allowed(stage, message):
    with pytest.raises(RecipeError, match=message):
        build({"ptq": [stage]}, where="x")


@pytest.mark.parametrize(
    "text", ["weights:\n  bits: 8\n  bits: 3\n", "weights: {bits: 8}\nseed: 1\n'weights': {bits: 3}"]
)
def test_a_key_that_stands_twice_is_refused(text):
    with pytest.raises(RecipeError, match=r"mine.yaml: not valid YAML: '(bits|weights)' stands twice: lines \d, 3"):
        parse(text, where="mine.yaml")


def test_a_value_of_set_with_a_key_twice_is_refused():
    with pytest.raises(RecipeError, match="not valid YAML"):
        load("ptq/minmax", ["weights={bits: 8, bits: 3}"])


def test_keys_that_are_merged_may_stand_again():
    text = "a: &a {bits: 8, b: 1}\nweights:\n  <<: *a\n  bits: 3\n"
    assert parse(text, where="x")["weights"] == {"bits": 3, "b": 1}
