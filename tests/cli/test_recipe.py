import pytest
import yaml

from ofqctl.recipe import catalogue


def test_every_shipped_recipe_is_listed_with_its_bits(ofqctl):
    listed = ofqctl("recipe", "ls", "--json").json
    assert [recipe["name"] for recipe in listed["recipes"]] == catalogue.names()
    assert all(recipe["description"] and recipe["bits"]["weights"] for recipe in listed["recipes"])
    assert "ptq/mse" in ofqctl("recipe", "ls").out


def test_a_shown_recipe_is_whole_and_can_be_changed(ofqctl):
    shown = ofqctl("recipe", "show", "ptq/mse", "--set", "weights.bits=3", "activations.bits=5")
    values = yaml.safe_load(shown.out)
    assert (values["weights"]["bits"], values["activations"]["bits"]) == (3, 5)
    assert values["attention"] == {
        "products": True,
        "qkr": False,
        "kv_bits": None,
        "dynamic": False,
        "query_bias": True,
    }
    assert ofqctl("recipe", "show", "ptq/mse", "--json").json["name"] == "ptq/mse"


def test_a_copied_recipe_is_the_recipe_and_is_not_overwritten_unasked(ofqctl, tmp_path):
    target = tmp_path / "my.yaml"
    assert ofqctl("recipe", "copy", "ptq/mse", target).code == 0
    assert catalogue.load(str(target)) == catalogue.load("ptq/mse")
    refused = ofqctl("recipe", "copy", "ptq/minmax", target)
    assert refused.code == 1
    assert "already exists" in refused.err
    assert ofqctl("recipe", "copy", "ptq/minmax", target, "--overwrite").code == 0
    assert ofqctl("recipe", "copy", "ptq/minmax", tmp_path, "--overwrite").code == 1
    assert ofqctl("recipe", "copy", "ptq/minmax", tmp_path / "no" / "my.yaml").code == 1


def test_a_good_recipe_passes_the_check(ofqctl):
    assert ofqctl("recipe", "check", "ptq/mse").code == 0
    assert ofqctl("recipe", "check", "ptq/mse", "--json").json["valid"] is True


def test_all_three_faults_of_a_recipe_are_listed_with_their_paths(ofqctl, tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("weights: {bits: 9}\nactivations: {granularity: pixel}\nwieghts: {bits: 4}\n")
    for command in (("recipe", "check", file), ("quantize", "vit_tiny", "--recipe", file)):
        ended = ofqctl(*command)
        assert ended.code == 1
        assert "3 errors" in ended.err
        assert "weights.bits: 9 bits" in ended.err
        assert "activations.granularity" in ended.err
        assert "wieghts: unknown key; did you mean 'weights'?" in ended.err


@pytest.mark.parametrize("text", ["weights: {bits: 4", "- a\n- b\n", "weights: [\n", ""])
def test_a_file_that_is_no_yaml_mapping_is_refused(ofqctl, tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    ended = ofqctl("recipe", "check", file)
    assert ended.code == 1
    assert str(file) in ended.err


@pytest.mark.parametrize("bits", ["0", "9", "two", "4.5", ""])
@pytest.mark.parametrize("option", ["--wbits", "--abits"])
def test_bits_that_do_not_exist_are_a_fault_of_the_recipe(ofqctl, option, bits):
    ended = ofqctl("quantize", "vit_tiny", option, bits)
    assert ended.code == 1
    assert {"--wbits": "weights.bits", "--abits": "activations.bits"}[option] in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("assignment", ["weights", "=4", "name.deep.er=3", "weights.bits=[", "weights.bit=4"])
def test_an_assignment_that_cannot_be_done_is_refused(ofqctl, assignment):
    ended = ofqctl("quantize", "vit_tiny", "--set", assignment)
    assert ended.code == 1
    assert "Traceback" not in ended.err
