"""What is read is checked: against its digest, against the plan, and against what such values can be."""

import json
import math

import pytest
import safetensors.torch
import torch

from ofqctl.artifact import digest, load_run, read_config, read_results, save_run, serialize, sign_config
from ofqctl.artifact.run import METADATA_KEY
from ofqctl.errors import ArtifactError, ModelError, OfqctlError
from ofqctl.grids import SMALLEST_STEP
from ofqctl.models import read_torch_file

from .test_run import quantized

DEEP = {"a": 1}
for _ in range(200):
    DEEP = {"a": DEEP}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model, weights, config = quantized(images)
    directory = tmp_path_factory.mktemp("made") / "run"
    full = {"interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "crop_mode": "center"}
    config = config.model_copy(update={"data_config": config.data_config | full})
    results = {"evaluation": {"data": "digits", "float": {"top1": 90.0}, "quantized": {"top1": 80.0}}}
    save_run(directory, model, weights, config, results)
    return directory


@pytest.fixture
def run(made, tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    for path in made.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def change(run, *keys, to, file="config.json", digested=True):
    values = json.loads((run / file).read_text())
    if not digested:
        values["quantization_config"].pop("config_sha256")
    spot = values
    for key in keys[:-1]:
        spot = spot[key]
    spot[keys[-1]] = to
    (run / file).write_text(json.dumps(values))


MODULES = ("quantization_config", "plan", "modules")
CHANGES = [
    (("data_config", "mean"), [0.4, 0.5, 0.5]),
    (("data_config", "std"), [0.4, 0.5, 0.5]),
    (("data_config", "crop_pct"), 0.5),
    (("data_config", "interpolation"), "nearest"),
    (("num_classes",), 11),
    (("label_names",), ["a"] * 10),
    (("model_args", "depth"), 1),
    ((*MODULES, "head", "operands", "input", "dynamic"), True),
    ((*MODULES, "head", "operands", "input", "signed"), None),
    (("quantization_config", "sha256"), "0" * 64),
]


@pytest.mark.parametrize(("keys", "to"), CHANGES, ids=lambda value: ".".join(value) if isinstance(value, tuple) else "")
def test_a_config_that_was_changed_by_hand_is_refused_with_the_command_that_accepts_it(run, keys, to):
    change(run, *keys, to=to)
    with pytest.raises(ArtifactError, match=r"config\.json: changed after it was written") as refused:
        load_run(run)
    assert refused.value.hint == f"`ofqctl inspect {run} --accept-config` accepts it as it is now"


def test_an_accepted_config_is_taken_as_it_is_from_then_on(run):
    change(run, "data_config", "mean", to=[0.4, 0.5, 0.5])
    sign_config(run)
    again = load_run(run)
    assert again.config.data_config["mean"] == [0.4, 0.5, 0.5]
    assert again.notes == ()


def test_a_config_that_cannot_be_used_cannot_be_accepted(run):
    change(run, "data_config", "std", to=[0.0, 0.5, 0.5])
    before = (run / "config.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"data_config: std\.0: .* greater than or equal to "):
        sign_config(run)
    assert (run / "config.json").read_bytes() == before


def test_the_digest_is_of_what_the_config_says_not_of_its_spacing(run):
    values = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(dict(reversed(values.items())), indent=4))
    assert load_run(run).notes == ()


def test_a_run_of_an_earlier_version_has_no_digest_and_loads_with_a_note(run):
    change(run, "source", to="somewhere", digested=False)
    assert "its config.json has no digest" in load_run(run).notes[0]


NOT_USABLE = [
    (("data_config",), {"input_size": [3, 32, 32]}, "data_config: interpolation"),
    (("data_config", "std"), [0.0, 0.5, 0.5], "data_config: std.0"),
    (("data_config", "std"), [1e-300, 0.5, 0.5], "data_config: std.0"),
    (("data_config", "mean"), [1e300, 0.5, 0.5], "data_config: mean.0"),
    (("data_config", "mean"), [None, 0.5, 0.5], "data_config: mean.0"),
    (("data_config", "mean"), [0.5], "1 values for 3 channels"),
    (("data_config", "input_size"), [3, 10**12, 32], "data_config: input_size.1"),
    (("data_config", "input_size"), "3", "data_config: input_size"),
    (("data_config", "interpolation"), 7, "data_config: interpolation"),
    (("data_config", "crop_pct"), -1, "data_config: crop_pct"),
    (("pretrained_cfg",), {"mean": 3}, "pretrained_cfg: mean"),
    (("pretrained_cfg",), {"input_size": [3]}, "pretrained_cfg: input_size"),
    (("pretrained_cfg",), [], "pretrained_cfg"),
    (("num_classes",), 10**12, "num_classes"),
    (("num_classes",), 11, "head.weight.codes"),
    (("label_names",), ["a"], "1 names for 10 classes"),
    (("model_args", "depth"), 10**12, "too large"),
    (("model_args", "depth"), -3, ""),
    (("model_args", "embed_dim"), "x", "timm cannot build it"),
    (("model_args",), {"img_size": 10**12}, "too large"),
    (("model_args",), DEEP, "nested"),
    (("quantization_config", "format_version"), "\u00b2", "format version"),
    (("quantization_config", "format_version"), True, "format version"),
    (("quantization_config", "plan"), None, "plan"),
    (("quantization_config", "recipe"), 3, "recipe"),
    ((*MODULES,), [], "modules"),
    ((*MODULES, "head", "kind"), "conv2d", "does not fit"),
    ((*MODULES, "head", "operands"), {}, ""),
    ((*MODULES, "head", "operands", "input", "step_shape"), [10**12], "step_shape"),
    ((*MODULES, "head", "operands", "input", "step_shape"), [-1], "step_shape"),
    ((*MODULES, "head", "operands", "input", "step_shape"), [2**16] * 3, "step_shape"),
    ((*MODULES, "head", "weight", "bits"), 10**400, "bits"),
    ((*MODULES, "head", "weight", "method"), "nothing", "nothing"),
]


@pytest.mark.parametrize(("keys", "to", "told"), NOT_USABLE)
def test_values_that_cannot_be_used_are_named_even_where_no_digest_tells(run, keys, to, told):
    change(run, *keys, to=to, digested=False)
    with pytest.raises(OfqctlError) as refused:
        load_run(run)
    assert told in str(refused.value)
    assert len(str(refused.value)) < 1000


def rewrite(run, name, index, value):
    """Change one value of a tensor, and every digest with it, as a program with a fault could write it."""
    tensors = safetensors.torch.load_file(run / "model.safetensors")
    tensors[name].view(-1)[index] = value
    content = safetensors.torch.save(tensors, metadata={METADATA_KEY: "2"})
    (run / "model.safetensors").write_bytes(content)
    change(run, "quantization_config", "sha256", to=digest(content))
    sign_config(run)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -0.5])
@pytest.mark.parametrize("name", ["head.weight.step", "head.input.step"])
def test_a_grid_step_that_is_not_positive_and_finite_is_refused_by_name(run, name, value):
    rewrite(run, name, 0, value)
    with pytest.raises(ArtifactError, match=f"{name} has 1 (values that are NaN or infinite|grid steps that are 0)"):
        load_run(run)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["head.bias", "pos_embed", "norm.weight", "blocks.0.attn.products.q.offset"])
def test_a_float_tensor_that_is_not_finite_is_refused_by_name(run, name, value):
    rewrite(run, name, 0, value)
    with pytest.raises(ArtifactError, match=f"{name} has 1 values that are NaN or infinite"):
        load_run(run)


def test_a_run_with_values_that_are_not_finite_is_not_written(tmp_path, images):
    model, _, config = quantized(images)
    with torch.no_grad():
        model.head.bias[3] = math.nan
    part = config.quantization_config.model_copy(update={"sha256": digest(serialize(model))})
    with pytest.raises(ArtifactError, match=r"head\.bias has 1 values that are NaN or infinite"):
        save_run(tmp_path / "run", model, serialize(model), config.model_copy(update={"quantization_config": part}), {})
    assert not (tmp_path / "run").exists()


def test_steps_that_training_took_below_zero_are_stored_as_what_they_compute_as(tmp_path, images):
    model, _, config = quantized(images, "lsq")
    with torch.no_grad():
        model.head.input.step.fill_(-0.25)
    weights = serialize(model)
    part = config.quantization_config.model_copy(update={"sha256": digest(weights)})
    save_run(tmp_path / "run", model, weights, config.model_copy(update={"quantization_config": part}), {})
    again = load_run(tmp_path / "run").model
    assert again.head.input.step.min() == SMALLEST_STEP
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    "content",
    ["", "[1, 2]", "{", "\x00", "[" * 100000, '{"evaluation": 3}', '{"training": {"epochs": [{}]}}', "9" * 9999],
)
def test_results_that_cannot_be_read_stop_nothing_and_are_told(run, content):
    (run / "results.json").write_text(content)
    results, notes = read_results(run)
    assert results == {}
    assert "results.json" in notes[0]
    assert "its figures are left out" in notes[0]
    assert load_run(run).notes == notes


def test_figures_that_were_changed_by_hand_are_left_out(run):
    assert read_results(run)[0]["evaluation"]["quantized"]["top1"] == 80.0
    change(run, "evaluation", "quantized", "top1", to=99.0, file="results.json")
    assert read_results(run) == (
        {},
        (f"{run / 'results.json'}: changed after it was written; its figures are left out",),
    )


def test_no_flipped_bit_changes_a_figure_without_a_word(run):
    path = run / "results.json"
    content, whole = path.read_bytes(), read_results(run)
    for bit in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        results, notes = read_results(run)
        assert (results, notes) == whole or (results == {} and "its figures are left out" in notes[0]), bit


def test_results_without_a_digest_are_those_of_an_earlier_version(run):
    (run / "results.json").write_text('{"seed": 3, "loss": NaN}')
    assert read_results(run) == ({"seed": 3, "loss": None}, ())


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_training_state_with_a_flipped_bit_is_refused(tmp_path, place):
    path = tmp_path / "last.pt"
    torch.save({"weights": torch.randn(1000)}, path)
    content = bytearray(path.read_bytes())
    content[int(place * 4000) + 600] ^= 4
    path.write_bytes(content)
    with pytest.raises(ModelError, match="truncated"):
        read_torch_file(path)


def test_a_config_is_read_without_weights_and_results(run):
    (run / "model.safetensors").unlink()
    (run / "results.json").write_text("{")
    assert read_config(run).num_classes == 10
