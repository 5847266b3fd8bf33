"""Training as a person types it: from a float model to a quantized run and on, interrupted and resumed."""

import csv
import json

import pytest

from ofqctl.training import FILE

from .conftest import TINY, quantize_tiny

SHORT = ("--set", "training.phases.0.warmup_steps=2", "calibration.images=8", "calibration.batch_size=8")
STEPS = "training.steps_per_epoch=3"


@pytest.fixture
def float_run(ofqctl, tmp_path):
    command = ("train", "vit_tiny_patch16_224", *TINY, "--recipe", "demo/digits_float", "--epochs", 1, *SHORT, STEPS)
    ended = ofqctl(*command, "--data", "digits", "--output", "float")
    assert ended.code == 0, ended.err
    return tmp_path / "float"


def train_quantized(*more):
    return (
        *("train", "float", "--recipe", "demo/digits_ofq_w2a2", "--data", "digits", "--output", "run", "--epochs", 2),
        *(*SHORT, STEPS, "training.phases.1.epochs=1", *more),
    )


def test_a_run_is_trained_shown_and_found_again(ofqctl, float_run, tmp_path):
    ended = ofqctl(*train_quantized("--val-data", "digits"))
    assert ended.code == 0, ended.err
    for words in ("codes changed a step", "cga", "oscillating", "Next:", "ofqctl evaluate run --data digits"):
        assert words in ended.out
    assert "train 9/9" in ended.err
    assert len(list(csv.DictReader((tmp_path / "run" / "summary.csv").open()))) == 3
    again = ofqctl("train", "--resume", "run", "--json")
    assert again.code == 0
    assert again.json["notes"][-1].startswith("run: was finished already")
    assert len(again.json["training"]["epochs"]) == 3


def test_the_recipe_of_a_run_is_taken_where_none_is_named(ofqctl, float_run):
    ended = ofqctl("train", "float", "--data", "digits", "--output", "onward", "--epochs", 1, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["recipe"] == "demo/digits_float"
    assert ended.json["source"] == "run float"


def test_a_quantized_run_is_a_start(ofqctl, float_run):
    assert ofqctl(*quantize_tiny("--calib-data", "digits", "--recipe", "lsq", "--output", "ptq")).code == 0
    onward = ("train", "ptq", "--data", "digits", "--output", "onward", *SHORT, STEPS)
    onward += ("training.batch_size=64", "training.phases.0.epochs=1", "training.phases.0.warmup_epochs=0")
    ended = ofqctl(*onward)
    assert ended.code == 1
    assert "hint: --set training.distillation.teacher=NAME" in ended.err
    ended = ofqctl(*onward, "training.distillation.teacher=float", "--json")
    assert ended.code == 0, ended.err
    assert "quantizers" not in " ".join(ended.json["notes"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("train",), "MODEL and --data: missing"),
        (("train", "vit_tiny"), "--data: missing"),
        (("train", "--resume", "run", "--num-classes", "3"), "--num-classes: no effect without MODEL"),
        (("train", "--resume", "run", "--split", "x"), "--split: no effect without --data"),
        (("train", "vit_tiny", "--data", "digits", "--val-split", "x"), "--val-split: no effect without --val-data"),
        (("train", "vit_tiny", "--data", "digits", "--log", "comet"), "comet"),
    ],
)
def test_wrong_usage_ends_with_2(ofqctl, arguments, told):
    ended = ofqctl(*arguments)
    assert ended.code == 2
    assert told in " ".join(ended.err.replace("│", " ").split())


def test_what_cannot_be_resumed_is_told(ofqctl, float_run):
    ended = ofqctl("train", "--resume", "nowhere")
    assert (ended.code, "nothing to resume" in ended.err) == (1, True)
    state = float_run / FILE
    state.write_bytes(state.read_bytes()[:2000])
    ended = ofqctl("train", "--resume", "float")
    assert (ended.code, "truncated" in ended.err) == (1, True)


def test_what_differs_is_listed_and_can_be_forced(ofqctl, float_run):
    assert ofqctl(*train_quantized()).code == 0
    state = json.loads((float_run.parent / "run" / "results.json").read_text())
    assert state["seed"] == 0
    changed = ("train", "--resume", "run", "--set", "training.optimizer.lr=0.5", "--seed", 1)
    ended = ofqctl(*changed)
    assert ended.code == 1
    assert "training.optimizer.lr: 0.001 in the run, 0.5 now" in ended.err
    assert "seed: 0 in the run, 1 now" in ended.err
    assert ofqctl(*changed, "--force-recipe").code == 0


def test_zero_epochs_are_a_fault_of_the_recipe(ofqctl, float_run):
    ended = ofqctl("train", "float", "--recipe", "demo/digits_float", "--data", "digits", "--epochs", 0)
    assert ended.code == 1
    assert "training.phases.0.epochs" in ended.err
