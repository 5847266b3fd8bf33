"""Methods are found by name, by whoever registered them and whenever."""

import pytest

from ofqctl.errors import PackageError, RecipeError
from ofqctl.recipe import Recipe
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.methods import PTQ_STAGES, QUANTIZERS, REMEDIES
from ofqctl.registry import ENTRY_POINTS, Frozen, Registry


class Strength(Frozen):
    strength: float = 1.0


@pytest.fixture
def stage():
    """A stage registered by a script after recipes have been read, and gone behind the test."""
    load("ptq/erq")

    @PTQ_STAGES.register("soften", Strength)
    def soften(task, settings):
        task.notes.append(f"softened by {settings.strength}")

    yield soften
    del PTQ_STAGES._methods["soften"]


def test_methods_of_the_package_are_found_without_a_list():
    assert {"lsq", "statsq", "uniform"} <= QUANTIZERS.methods().keys()
    assert {"erq", "evolq", "layer_norm", "reconstruct", "softmax"} <= PTQ_STAGES.methods().keys()
    assert {"cga", "dampening", "freezing"} <= REMEDIES.methods().keys()


def test_a_role_has_the_methods_that_are_for_it():
    assert "statsq" in QUANTIZERS.methods("weights")
    assert "statsq" not in QUANTIZERS.methods("activations")
    assert "lsq" in QUANTIZERS.methods("activations")


def test_what_a_script_registers_is_known_to_recipes_at_once(stage):
    recipe = load("ptq/erq", ["ptq=[{stage: soften, strength: 2}]"])
    assert recipe.ptq[0].strength == 2.0
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    with pytest.raises(RecipeError, match=r"ptq.0.strenght: unknown key; did you mean 'strength'"):
        load("ptq/erq", ["ptq=[{stage: soften, strenght: 2}]"])


def test_a_name_is_taken_once_but_the_same_thing_may_come_again(stage):
    PTQ_STAGES.register("soften", Strength)(stage)
    with pytest.raises(ValueError, match="'erq' is already registered by"):
        PTQ_STAGES.register("erq", Strength)(stage)


def test_a_plugin_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\nbroken = nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PackageError, match="cannot be imported: ModuleNotFoundError"):
        Registry("thing", "ofqctl.quantizers").methods()


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["weights.method=lsq", "weights.symmetric=false"], "weights.symmetric: unknown key"),
        (["activations.method=statsq"], "activations.method: 'statsq' is unknown; allowed are daq, lcq, lsq"),
        (["weights.method=unifrom"], "weights.method: 'unifrom' is unknown; did you mean 'uniform'"),
        (["training={phases: [{cga: {}, freezing: {}}]}"], "cga and freezing each decide which codes are held"),
    ],
)
def test_settings_of_another_method_are_refused_by_name(assignments, message):
    with pytest.raises(RecipeError) as raised:
        load("ptq/mse", assignments)
    assert message in raised.value.message


def test_a_method_that_is_set_takes_the_settings_of_the_former_one_along():
    assert load("ptq/mse", ["weights.method=lsq"]).weights.model_dump() == {
        "bits": 8,
        "method": "lsq",
        "granularity": "channel",
        "start": "mean",
    }


@pytest.mark.parametrize("recipe", ["statsq", "lsq", "ptq/mse"])
def test_one_bit_is_a_width(recipe):
    assert load(recipe, ["weights.bits=1"]).weights.bits == 1
