"""From phase to phase: what the optimizer takes along, what stays as it is, and going on at the border of two."""

import pytest
import torch

from ofqctl.jobs.train import train
from ofqctl.jobs.trained_run import TrainedRun
from ofqctl.models import ModelRequest
from ofqctl.training import Checkpoint, read_checkpoint_state
from tests.interrupting import same

SHORT = "training.steps_per_epoch=2"
ONE = "training.phases=[{epochs: 3, schedule: constant}]"
SPLIT = "training.phases=[{{epochs: 2, schedule: constant}}, {{epochs: 1, schedule: constant, optimizer: {}}}]"
FLOAT = "demo/digits_float"


def model_of(output):
    return read_checkpoint_state(output).model


def steps_of(output):
    """How many steps the optimizer has counted for each parameter."""
    optimizer = read_checkpoint_state(output).optimizer
    return {
        name: int(optimizer["state"][number]["step"])
        for group in optimizer["param_groups"]
        for name, number in zip(group["param_names"], group["params"], strict=True)
        if number in optimizer["state"]
    }


@pytest.fixture
def trained(request_for):
    """Trains in float, two steps an epoch; gives the output."""

    def run(name, *sets):
        request = request_for(name, FLOAT, [SHORT, *sets])
        train(request)
        return request.output

    return run


def test_two_phases_of_one_rate_are_one_phase(trained):
    whole, split = trained("whole", ONE), trained("split", SPLIT.format("carried"))
    assert same(model_of(whole), model_of(split))


def test_a_fresh_optimizer_forgets_the_phase_before(trained):
    whole, fresh = trained("whole", ONE), trained("fresh", SPLIT.format("fresh"))
    assert not same(model_of(whole), model_of(fresh))
    assert set(steps_of(fresh).values()) == {2}


def test_parameters_that_are_new_in_a_phase_start_anew(trained):
    output = trained("run", "training.phases=[{trainable: ['head.*']}, {}]")
    counted = steps_of(output)
    assert {count for name, count in counted.items() if name.startswith("head.")} == {4}
    assert {count for name, count in counted.items() if not name.startswith("head.")} == {2}


def stop_at(step):
    def stop(row, _total):
        if row["step"] == step:
            raise MemoryError

    return stop


@pytest.mark.parametrize("optimizer", ["carried", "fresh"])
@pytest.mark.parametrize("step", [5, 6])  # with the last checkpoint between the phases, or within the second
def test_a_run_killed_in_its_second_phase_goes_on_to_the_same_bits(request_for, trained, optimizer, step):
    whole = trained("whole", SPLIT.format(optimizer))
    request = request_for("killed", FLOAT, [SHORT, SPLIT.format(optimizer)], checkpoint_every=1, resume="auto")
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(step))
    train(request)
    assert same(model_of(whole), model_of(request.output))
    assert steps_of(whole) == steps_of(request.output)


@pytest.mark.parametrize("place", ["ahead of the last epoch's row", "ahead of the next phase"])
def test_a_run_killed_at_the_end_of_a_phase_loses_nothing(request_for, monkeypatch, place):
    def publish(run, engine):
        if len(engine.history) == 2:
            raise MemoryError

    def save(state, directory, *name, real=Checkpoint.save):
        if state.position["phase"] == 1:
            raise MemoryError
        real(state, directory, *name)

    request = request_for("killed", sets=[SHORT], checkpoint_every=1, resume="auto")
    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        if place == "ahead of the next phase":
            patched.setattr(Checkpoint, "save", save)
        else:
            patched.setattr(TrainedRun, "publish", publish)
        train(request)
    rows = train(request).training.epochs
    assert [(row.phase, row.step) for row in rows] == [("train", 2), ("train", 4), ("cga", 6)]
    whole = request_for("whole", sets=[SHORT])
    train(whole)
    assert same(model_of(whole.output), model_of(request.output))


def test_statistics_of_a_batch_norm_stay_in_a_phase_of_steps_alone(request_for):
    kwargs = {"embed_dim": (16, 24, 32), "key_dim": 8, "num_heads": (1, 2, 3), "depth": (1, 1, 1)}
    model = ModelRequest("levit_128s", pretrained=False, num_classes=3, img_size=64, kwargs=kwargs)
    sets = [SHORT, "attention.qkr=false", "training.phases=[{lr: 0.01}, {lr: 0.01, trainable: ['*.step']}]"]
    request = request_for("run", sets=sets, model=model, resume="auto")
    with pytest.raises(MemoryError):
        train(request, on_step=stop_at(3))
    before = model_of(request.output)
    assert before["stem.conv1.bn.num_batches_tracked"] == 2
    train(request)
    after = model_of(request.output)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[2] for name in moved} == {"step"}
