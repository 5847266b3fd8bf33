"""Run directories and training states that format 1 wrote are read as what they are."""

import json
from pathlib import Path

import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.artifact.config import parse_config
from ofqctl.recipe import Plan, catalogue
from ofqctl.recipe.plan import computes_alike
from ofqctl.training import read_checkpoint_state
from ofqctl.training.state import checkpoint_of

FORMAT_1 = Path(__file__).parent / "format_1"


@pytest.mark.parametrize("name", ["ptq", "qat"])
def test_a_run_gives_the_logits_it_gave_then(name):
    wanted = json.loads((FORMAT_1 / "logits.json").read_text())[name]
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        logits = load_run(FORMAT_1 / name).model(images)
    torch.testing.assert_close(logits, torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_settings_of_other_methods_are_gone_and_its_own_are_kept():
    quantization = load_run(FORMAT_1 / "ptq").config.quantization_config
    assert not hasattr(quantization.plan.modules["blocks.0.mlp.fc1"].weight, "start")
    assert quantization.plan.modules["blocks.0.mlp.fc1"].weight.range == "mse"
    assert quantization.recipe.weights.symmetric is True
    training = load_run(FORMAT_1 / "qat").config.quantization_config.recipe
    assert training.weights == catalogue.load("demo/digits_ofq_w2a2").weights
    assert training.training.phases[1].remedies["cga"].boundary_range == 0.005


def test_stages_and_iterations_are_read_under_their_former_keys(tmp_path):
    assert [stage.stage for stage in load_run(FORMAT_1 / "ptq").config.quantization_config.recipe.ptq] == ["layer_norm"]
    former = [{"step": "layer_norm"}, {"step": "reconstruct", "steps": 7, "views": 1}]
    values = json.loads((FORMAT_1 / "ptq" / "config.json").read_text())
    values["quantization_config"] |= {
        "format_version": 2,
        "recipe": catalogue.load("ptq/mse").model_dump(mode="json") | {"ptq": former},
        "plan": Plan(modules={}).model_dump(mode="json"),
    }
    recipe = parse_config(json.dumps(values), "config.json").quantization_config.recipe
    assert [(stage.stage, getattr(stage, "iterations", None)) for stage in recipe.ptq] == [
        ("layer_norm", None),
        ("reconstruct", 7),
    ]
    state = torch.load(FORMAT_1 / "qat" / "last.pt", weights_only=True)
    state["recipe"]["ptq"] = former
    stages = checkpoint_of(state, tmp_path / "last.pt").recipe["ptq"]
    assert [stage["stage"] for stage in stages] == ["layer_norm", "reconstruct"]
    assert stages[1]["iterations"] == 7


def test_a_sign_that_zero_points_decide_does_not_set_quantizers_apart():
    plan = load_run(FORMAT_1 / "ptq").config.quantization_config.plan.modules["blocks.0.mlp.fc1"].operands["input"]
    assert not plan.symmetric
    assert computes_alike(plan, plan.model_copy(update={"signed": True}))
    assert not computes_alike(plan, plan.model_copy(update={"bits": 3}))


def test_a_training_state_is_read_with_what_is_new_at_its_default():
    checkpoint = read_checkpoint_state(FORMAT_1 / "qat")
    assert checkpoint.recipe["weights"] == {"bits": 2, "method": "statsq", "granularity": "channel"}
    assert checkpoint.recipe == catalogue.Recipe.model_validate(checkpoint.recipe).model_dump(mode="json")
