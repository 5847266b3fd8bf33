"""Going on with a run: what it remembers of what it was asked, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

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
    assert result["notes"][-1].startswith(f"{request.output}: was finished already")
    assert result["training"] == before["training"]
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


def test_what_differs_in_the_recipe_is_named_by_its_path(request_for):
    request = request_for(checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(3))
    other = request_for(sets=["training.phases.1.lr=1e-4"], resume="auto")
    with pytest.raises(RecipeError, match=r"training\.phases\.1\.lr: 1e-05 in the run, 0\.0001 now$"):
        train(other)
    train(replace(other, force_recipe=True))


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


def test_a_run_goes_on_where_it_lies(request_for):
    request = request_for()
    train(request)
    with pytest.raises(ArtifactError, match="is continued where it lies"):
        train(replace(request, resume=request.output, output=request.output.with_name("other")))
