"""Going on with a run: what it remembers of what it was asked, and what is refused."""

import shutil
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ofqctl.data import DataSpec
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.jobs.quantize import QuantizeRequest, quantize
from ofqctl.jobs.train import recorded_request, train
from ofqctl.recipe.catalogue import load
from ofqctl.training import FILE, read_checkpoint_state


def stop_at(step):
    def stop(row, _total):
        if row["step"] == step:
            raise MemoryError

    return stop


@contextmanager
def changed_state(request, step=3):
    """The content of ``last.pt`` of a training that stopped at a step, to be changed in the block."""
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(step))
    state = torch.load(request.output / FILE, weights_only=True)
    yield state
    torch.save(state, request.output / FILE)


def test_a_run_alone_says_how_it_goes_on(request_for, folder):
    options = {"seed": 3, "grad_accum": 2, "checkpoint_every": 2, "val_data": DataSpec(str(folder))}
    whole = request_for("whole", **options)
    train(whole)
    request = request_for("stopped", **options)
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(9))
    again = recorded_request(request.output)
    assert again == replace(request, output=None, resume=request.output)
    train(again)
    weights = [(r.output / "model.safetensors").read_bytes() for r in (whole, request)]
    assert weights[0] == weights[1]


def test_a_finished_run_says_so_and_is_left_as_it_is(request_for):
    request = request_for()
    before = train(request)
    stamp = (request.output / FILE).stat().st_mtime_ns
    result = train(recorded_request(request.output))
    assert result.notes[-1].startswith(f"{request.output}: was finished already")
    assert result.training == before.training
    assert (request.output / FILE).stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 1}, "seed: 0 in the run, 1 now"),
        ({"grad_accum": 2}, "grad_accum: 1 in the run, 2 now"),
        ({"amp": True}, "amp: False in the run, True now"),
    ],
)
def test_what_would_change_the_result_is_refused(request_for, change, told):
    request = request_for(checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(3))
    with pytest.raises(RecipeError, match=told):
        train(replace(request, resume="auto", **change))


def test_a_state_without_a_moment_of_the_optimizer_is_refused(request_for):
    request = request_for(checkpoint_every=1)
    with changed_state(request) as state:
        del state["optimizer"]["state"][0]["exp_avg"]
    with pytest.raises(ArtifactError, match=r"^last\.pt: the optimizer's state of a parameter lacks 'exp_avg'$"):
        train(recorded_request(request.output))


def test_a_number_of_steps_stays_an_integer(request_for):
    request = request_for(checkpoint_every=1)
    with changed_state(request) as state:
        state["position"]["step"] = float(state["position"]["step"])
    train(recorded_request(request.output))


@pytest.mark.parametrize("part", ["position.step", "meter.images"])
@pytest.mark.parametrize("number", [-1, 10**39])
def test_a_count_that_no_training_reaches_is_refused(request_for, part, number):
    request = request_for(checkpoint_every=1)
    outer, inner = part.split(".")
    with changed_state(request) as state:
        state[outer][inner] = number
    with pytest.raises(ArtifactError, match=rf"last\.pt: {inner}: "):
        train(recorded_request(request.output))


@pytest.mark.parametrize(("key", "value"), [("phase", [[]]), ("step", 0.5), ("loss", "low"), ("seconds", [1])])
def test_a_row_of_the_history_that_no_result_holds_is_refused(request_for, key, value):
    request = request_for(checkpoint_every=1)
    with changed_state(request, step=9) as state:
        state["history"][0][key] = value
    with pytest.raises(ArtifactError, match=rf"last\.pt: history\.0\.{key}: "):
        train(recorded_request(request.output))


def test_a_name_that_is_not_unicode_ends_no_training(request_for):
    request = request_for(checkpoint_every=1)
    with changed_state(request, step=9) as state:
        state["history"][0]["phase"] = "\ud800"
    train(recorded_request(request.output))
    assert "\\ud800" in (request.output / "summary.csv").read_text(encoding="utf-8")


def test_what_differs_in_the_recipe_is_named_by_its_path(request_for):
    request = request_for(checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(3))
    other = request_for(sets=["training.phases.1.lr=1e-4"], resume="auto")
    with pytest.raises(RecipeError, match=r"training\.phases\.1\.lr: 1e-05 in the run, 0\.0001 now$"):
        train(other)
    train(replace(other, force_recipe=True))


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "finished"])
def test_other_images_are_refused(request_for, folder, tmp_path, stopped):
    request = request_for(checkpoint_every=1)
    with pytest.raises(MemoryError) if stopped else nullcontext():
        train(request, on_step=stop_at(3) if stopped else lambda _row, _total: None)
    other = tmp_path / "other"
    shutil.copytree(request.data.path, other)
    first, *_, last = sorted(path.name for path in other.iterdir() if path.is_dir())
    (other / last).rename(other / f"{last}-renamed")
    next((other / first).iterdir()).unlink()
    again = replace(request, data=DataSpec(str(other)), resume="auto")
    with pytest.raises(RecipeError, match="was trained on other data") as caught:
        train(again)
    assert f"data.classes.{last}-renamed: None in the run" in str(caught.value)
    assert "data.images" in str(caught.value)
    train(replace(again, force_recipe=True))


def test_the_same_images_elsewhere_go_on(request_for, tmp_path):
    request = request_for(checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(3))
    shutil.copytree(request.data.path, tmp_path / "elsewhere")
    result = train(replace(request, data=DataSpec(str(tmp_path / "elsewhere")), resume="auto"))
    assert result.training.data == str(tmp_path / "elsewhere")


def test_a_run_of_before_goes_on_with_a_note(request_for):
    request = request_for(checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(3))
    replace(read_checkpoint_state(request.output), data={}).save(request.output)
    result = train(replace(request, resume="auto"))
    assert any("that they are the same is not checked" in note for note in result.notes)


def test_only_a_training_run_is_gone_on_with(request_for, tmp_path):
    with pytest.raises(ArtifactError, match="nowhere: no last"):
        recorded_request(Path("nowhere"))
    run = tmp_path / "quantized"
    quantize(QuantizeRequest(request_for().model, load("ptq/minmax", ["calibration.images=4"]), output=run))
    with pytest.raises(ArtifactError, match="nothing to resume") as caught:
        recorded_request(run)
    assert "--output NEW" in caught.value.hint


def test_a_state_without_its_request_needs_the_command_again(request_for):
    request = request_for()
    train(request)
    replace(read_checkpoint_state(request.output), request={}).save(request.output)
    with pytest.raises(ArtifactError, match="has no recorded request"):
        recorded_request(request.output)


def test_a_plan_whose_shapes_do_not_fit_is_refused(request_for):
    request = request_for(checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(3))
    state = read_checkpoint_state(request.output)
    module = next(m for m in state.plan["modules"].values() if m["weight"] is not None and m["kind"] == "conv2d")
    module["weight"]["step_shape"][1] = 2
    state.save(request.output)
    with pytest.raises(ArtifactError, match=r"last\.pt: its plan does not fit the model"):
        train(recorded_request(request.output))


def test_a_run_goes_on_where_it_lies(request_for):
    request = request_for()
    train(request)
    with pytest.raises(ArtifactError, match="is continued where it lies"):
        train(replace(request, resume=request.output, output=request.output.with_name("other")))
