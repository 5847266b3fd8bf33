"""Post-training quantization as a person types it."""

import json
from pathlib import Path

import pytest

from .conftest import QUICK, TINY, quantize_tiny

FEW = ("--set", "calibration.images=16", "calibration.batch_size=8")
DIGITS = ("--calib-data", "digits")


QUICKLY = {
    "repq": (),
    "erq": (),
    "gptaq": (),
    "evolq": ("ptq.1.iterations=5", "ptq.1.views=16", "ptq.2.passes=1"),
    "best": ("ptq.1.iterations=5", "ptq.1.views=16"),
    "glfq": ("ptq.1.iterations=5", "ptq.1.views=16"),
    "aphq": ("ptq.1.iterations=5", "ptq.1.views=16"),
    "wkvquant": ("ptq.2.iterations=5", "ptq.2.views=16"),
    "rotation": ("ptq.2.iterations=5", "ptq.2.views=16"),
    "residual_rotation": ("ptq.1.iterations=5", "ptq.1.views=16"),
}


@pytest.mark.parametrize("name", QUICKLY)
def test_each_recipe_makes_a_run_that_evaluates_as_it_was_measured(ofqctl, name):
    quick = QUICKLY[name]
    arguments = ("quantize", "vit_tiny_patch16_224", *TINY, "--recipe", f"ptq/{name}", "--wbits", 4, "--abits", 4)
    ended = ofqctl(*arguments, *FEW, *quick, *DIGITS, "--data", "digits", "--output", "run", "--json")
    assert ended.code == 0, ended.err
    again = ofqctl("evaluate", "run", "--data", "digits", "--json").json
    assert again["top1"] == ended.json["evaluation"]["quantized"]["top1"]
    assert again["loss"] == pytest.approx(ended.json["evaluation"]["quantized"]["loss"], rel=1e-5)


ROTATED = ("--recipe", "ptq/residual_rotation", *FEW, "ptq=[{stage: rotation, residual: true}]", *DIGITS)


def test_a_run_with_a_rotated_residual_stream_exports(ofqctl):
    assert ofqctl("quantize", "vit_tiny_patch16_224", *TINY, *ROTATED, "--output", "run").code == 0
    assert ofqctl("export", "run", "--onnx", "--strict", "--verify-images", 4).code == 0


def test_a_run_with_a_rotated_residual_stream_trains_on(ofqctl):
    assert ofqctl("quantize", "vit_tiny_patch16_224", *TINY, *ROTATED, "--output", "run").code == 0
    training = "training={phases: [{name: train, epochs: 1}], batch_size: 512}"
    train = ("train", "run", "--recipe", "run/recipe.yaml", "--set", training, "--data", "digits")
    ended = ofqctl(*train, "--output", "trained")
    assert ended.code == 0, ended.err
    assert ofqctl("evaluate", "trained", "--data", "digits").code == 0


def test_a_layout_of_other_programs_cannot_hold_a_rotated_residual_stream(ofqctl):
    weights = (*ROTATED, "--set", "activations.bits=32", "first.activations.bits=32", "last.activations.bits=32")
    assert ofqctl("quantize", "vit_tiny_patch16_224", *TINY, *weights, "--output", "run").code == 0
    ended = ofqctl("export", "run", "--safetensors", "--layout", "compressed-tensors")
    assert "an RMSNorm stands in place of the architecture's LayerNorm" in ended.err


def test_calibration_images_are_reconstructed_on_unless_a_recipe_is_named(ofqctl):
    arguments = ("quantize", "vit_tiny_patch16_224", *TINY, "--wbits", 4, *FEW, "--json")
    ended = ofqctl(*arguments, *DIGITS, "--time-budget", 1, "--output", "with")
    assert ended.json["recipe"] == "ptq/best"
    assert any("the time budget allowed" in note for note in ended.json["notes"])
    assert ofqctl(*arguments, "--output", "without").json["recipe"] == "ptq/minmax"


def test_at_8_bits_the_recipe_of_the_fastest_files_is_the_default(ofqctl):
    ended = ofqctl("quantize", "vit_tiny_patch16_224", *TINY, "--wbits", 8, *FEW, *DIGITS, "--output", "run")
    assert ended.code == 0, ended.err
    assert "deploy/w8a8 makes the fastest files" in ended.out
    assert "layers are quantized row by row" in ended.out
    assert ofqctl("export", "run", "--onnx", "--strict", "--verify-images", 8).code == 0


def test_fewer_calibration_images_than_asked_for_are_told(ofqctl):
    few = ("--recipe", "ptq/minmax", *DIGITS, "--calib-images", 5000)
    ended = ofqctl("quantize", "vit_tiny_patch16_224", *TINY, *few, "--output", "a")
    assert ended.code == 0
    assert "digits/train has 1437 images, 5000 were requested" in ended.err


def test_calibrating_on_the_images_that_are_measured_on_is_told(ofqctl):
    split = ("--calib-split", "test", "--split", "test")
    ended = ofqctl(*quantize_tiny(*DIGITS, *split, "--data", "digits", "--output", "a"))
    assert "8 of the 360 images measured on are calibration images" in ended.err
    ended = ofqctl(*quantize_tiny(*DIGITS, "--data", "digits", "--output", "b"))
    assert "are calibration images" not in ended.err


def test_images_can_be_fitted_to_the_model_where_there_are_none(ofqctl):
    fitting = ("--set", "calibration.fitting=2", "calibration.images=8")
    ended = ofqctl(*quantize_tiny(*fitting, "--output", "a"))
    assert "calibrated on synthetic images that were fitted to the model" in ended.err
    about = json.loads(Path("a/results.json").read_text())["calibration"]
    assert (about["data"], about["images"]) == ("synthetic", 8)


def test_a_time_budget_of_zero_is_refused(ofqctl):
    ended = ofqctl(*quantize_tiny("--time-budget", 0))
    assert ended.code == 1
    assert "--time-budget: 0 seconds; more than 0 are needed" in ended.err


def test_mixed_precision_keeps_to_an_average(ofqctl):
    result = ofqctl(*quantize_tiny(*DIGITS, "--target-bits", 3.5, "--output", "a", "--json")).json
    mixed = result["mixed_precision"]
    assert mixed["weights"]["average_bits"] <= 3.5 + 1e-9
    assert result["bits"]["weights"] == pytest.approx(mixed["weights"]["average_bits"], abs=1e-3)
    config = json.loads(Path("a/config.json").read_text())["quantization_config"]
    for name, bits in mixed["weights"]["bits"].items():
        assert config["plan"]["modules"][name]["weight"]["bits"] == bits
    assert ofqctl("evaluate", "a", "--data", "digits").code == 0


def test_activations_get_their_bits_as_well_and_the_sum_stands_beside_the_whole(ofqctl):
    arguments = ("--target-bits", 4, "--target-abits", 5, "--measure", "fisher", "--candidates", "3,4,8")
    ended = ofqctl(*quantize_tiny(*DIGITS, *arguments, "--output", "a"))
    assert "bits of activations on average:" in ended.out
    assert "nats from float; the sum over layers predicted" in ended.out
    mixed = json.loads(Path("a/results.json").read_text())["mixed_precision"]
    assert mixed["measure"] == "fisher"
    assert mixed["activations"]["average_bits"] <= 5
    config = json.loads(Path("a/config.json").read_text())["quantization_config"]
    for name, bits in mixed["activations"]["bits"].items():
        assert {q["bits"] for q in config["plan"]["modules"][name]["operands"].values()} == {bits}
    assert ofqctl("evaluate", "a", "--data", "digits").code == 0


def test_mixed_precision_keeps_to_a_size(ofqctl):
    result = ofqctl(*quantize_tiny(*DIGITS, "--target-size", "60kB", "--output", "a", "--json")).json
    assert result["size"]["total"] <= 60_000
    assert Path("a/model.safetensors").stat().st_size == result["size"]["total"]


@pytest.mark.slow
def test_mixed_precision_keeps_to_a_time_measured_in_the_runtime(ofqctl):
    result = ofqctl(
        *quantize_tiny(
            *DIGITS, "--target-bits", 6, "--cost", "latency", "--candidates", "4,8", "--output", "a", "--json"
        )
    ).json
    cost, bits = result["mixed_precision"]["weights"]["cost"], result["mixed_precision"]["weights"]["bits"]
    assert cost["unit"] == "ms"
    assert all(of["4"] > 0 and of["8"] > 0 for of in cost["layers"].values())
    assert cost["spent"] == pytest.approx(sum(cost["layers"][name][str(b)] for name, b in bits.items()))
    totals = [sum(of[b] for of in cost["layers"].values()) for b in ("4", "8")]
    assert cost["budget"] == pytest.approx(sum(totals) / 2)
    assert cost["spent"] <= cost["budget"] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cost", "latency"), "--cost latency: needs --target-bits"),
        (("--target-abits", 1.5), "--target-abits: no allocation reaches 1.5 bits on average; from 2 to 8"),
        (("--target-bits", 1.5), "no allocation reaches 1.5 bits on average; from 2 to 8 can be reached"),
        (("--target-size", "1kB"), "no allocation reaches 1000 bytes; from"),
        (("--target-size", "much"), "not a size"),
        (("--target-bits", 4, "--target-size", "1MB"), "only one of them can be given"),
        (("--target-bits", 4, "--candidates", "4"), "expected at least 2 widths from 1 to 8"),
        (("--target-bits", 4, "--candidates", "4,9"), "'9'; expected at least 2 widths from 1 to 8"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused(ofqctl, options, message):
    ended = ofqctl(*quantize_tiny(*options, "--output", "a"))
    assert ended.code == 1
    assert message in ended.err
    assert not Path("a").exists()


def test_sensitivity_ranks_every_layer_and_draws_it(ofqctl):
    arguments = ("sensitivity", "vit_tiny_patch16_224", *TINY, *QUICK, *DIGITS, "--bits", "2,4")
    result = ofqctl(*arguments, "--plot", "s.svg", "--json").json
    worst = [max(layer["damage"].values()) for layer in result["layers"]]
    assert worst == sorted(worst, reverse=True)
    assert {"patch_embed.proj", "head", "blocks.0.attn"} <= {layer["layer"] for layer in result["layers"]}
    assert "<svg" in Path("s.svg").read_text()
    assert "blocks.0.attn" in ofqctl(*arguments).out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "9"), "--bits: '9'"),
        (("--plot", "s.doc"), "its name ends in .png"),
        (("--plot", "nosuch/s.png"), "cannot be written"),
    ],
)
def test_sensitivity_refuses_what_it_cannot_do(ofqctl, options, message):
    ended = ofqctl("sensitivity", "vit_tiny_patch16_224", *TINY, *QUICK, *options)
    assert ended.code == 1
    assert message in ended.err
