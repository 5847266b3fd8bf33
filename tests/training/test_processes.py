"""Several processes that train together, started by torchrun as a person would."""

import json
import pickle
import time
from dataclasses import replace

import pytest
import torch

from ofqctl.data import DataSpec
from ofqctl.errors import RecipeError
from ofqctl.jobs.train import train
from ofqctl.training import read_checkpoint_state

SCRIPT = """
import os, pickle, signal, sys, torch
from ofqctl.cli.failures import failed
from ofqctl.errors import OfqctlError
from ofqctl.jobs.train import train
rank, dies = int(os.environ.get("RANK", "0")), int(sys.argv[3])
if sys.argv[4:] == ["dies in validation"] and rank == 1:
    import ofqctl.jobs.measuring as measuring
    measuring.evaluate = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
elif len(sys.argv) > 4 and rank == 1:
    import ofqctl.jobs.train as job
    job.pick_device = lambda name: torch.device(sys.argv[4])
request = pickle.load(open(sys.argv[1], "rb"))
losses = []
def step(row, total):
    losses.append(row["step_loss"])
    if rank == 1 and len(losses) == dies:
        os.kill(os.getpid(), signal.SIGKILL)
try:
    train(request, on_step=step)
except OfqctlError as error:
    sys.exit(failed(error, as_json=False))
if rank == 0:
    pickle.dump(losses, open(sys.argv[2], "wb"))
"""


@pytest.fixture
def together(torchrun, tmp_path):
    """Trains with so many processes; gives how they ended and the losses of all steps."""

    def run(request, world, dies=0, *more):
        script, asked, losses = (tmp_path / name for name in ("script.py", "request", f"losses{world}"))
        script.write_text(SCRIPT)
        asked.write_bytes(pickle.dumps(request))
        ended = torchrun(world, script, asked, losses, dies, *more)
        return ended, pickle.loads(losses.read_bytes()) if losses.exists() else []

    return run


def counts_of(directory):
    """What the tracker counted: codes, directions, frequencies, flips; not the gradients of a process's own images."""
    state = read_checkpoint_state(directory).tracker
    return {name: tensor for name, tensor in state.items() if not name.endswith(".trajectory")}


def validated(directory):
    """Top-1 and loss of every epoch on the validation images."""
    rows = json.loads((directory / "results.json").read_text())["training"]["epochs"]
    return [(row["val_top1"], row["val_loss"]) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "sets"),
    [
        ("demo/digits_ofq_w2a2", ["training.phases.0.epochs=4"]),
        ("demo/digits_float", ["training.phases.0.epochs=4", "training.ema=0.9"]),
    ],
    ids=["quantized", "averaged"],
)
def test_two_processes_take_the_same_steps_as_one(request_for, together, validation_folder, recipe, sets):
    # one process takes the two halves of a batch in turn, as two do at once: sums in the same order, so the same bits
    validation = DataSpec(str(validation_folder))
    one = request_for("one", recipe, sets, val_data=validation, grad_accum=2)
    two = request_for("two", recipe, sets, val_data=validation, time_budget=10_000.0)  # which is enough for all
    (_, alone), (ended, shared) = together(one, 1), together(two, 2)
    assert ended.returncode == 0, ended.stderr
    assert len(alone) >= 24
    assert shared == alone
    if recipe == "demo/digits_ofq_w2a2":
        first, second = counts_of(one.output), counts_of(two.output)
        assert first.keys() == second.keys()
        assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
        assert sum(int(t.sum()) for name, t in first.items() if name.endswith(".flips")) > 0
    assert (one.output / "model.safetensors").read_bytes() == (two.output / "model.safetensors").read_bytes()
    assert validated(one.output) == validated(two.output)


@pytest.mark.slow
def test_only_what_is_trainable_is_exchanged(request_for, together):
    sets = ["training.phases.0.trainable=[head.*]"]
    ended, losses = together(request_for("two", sets=sets), 2)
    assert ended.returncode == 0, ended.stderr
    assert len(losses) == 18


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_with_an_error(request_for, together):
    started = time.monotonic()
    ended, losses = together(request_for("two"), 2, 5)
    assert ended.returncode != 0
    assert losses == []
    assert "error: process 0 of 2: another process has ended or cannot be reached" in ended.stderr
    assert time.monotonic() - started < 120


@pytest.mark.slow
def test_a_process_that_dies_in_validation_ends_the_others_with_an_error(request_for, together, validation_folder):
    request = request_for("two", val_data=DataSpec(str(validation_folder)), checkpoint_every=1)
    ended, losses = together(request, 2, 0, "dies in validation")
    assert ended.returncode != 0
    assert losses == []
    assert "error: process 0 of 2: another process has ended or cannot be reached" in ended.stderr
    assert read_checkpoint_state(request.output).position["step"] == 6  # what was trained is not lost


BATCH_NORM = """
import torch
from ofqctl.training import joined
with joined(torch.device("cpu")) as processes:
    norm = torch.nn.BatchNorm2d(3)
    norm(torch.full((2, 3, 4, 4), 1.0 + processes.rank))
    own = norm.running_mean.clone()
    processes.share_buffers(norm)
    first, *others = processes.gather((own, norm.running_mean, norm.num_batches_tracked))
    assert not torch.equal(first[0], others[0][0])
    assert all(torch.equal(first[0], mean) and count == 1 for _, mean, count in (first, *others))
"""


@pytest.mark.slow
def test_the_statistics_of_batch_norms_are_those_of_the_first_process(torchrun, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(BATCH_NORM)
    ended = torchrun(2, script)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_processes_on_different_devices_are_refused(request_for, together):
    ended, _ = together(request_for("two"), 2, 0, "mps")
    assert ended.returncode != 0
    assert "different kinds of devices: process 0 on cpu, process 1 on mps" in ended.stderr


@pytest.mark.slow
def test_another_number_of_processes_does_not_resume_unasked(request_for, together):
    request = request_for("two", checkpoint_every=1)
    assert together(request, 2, 5)[0].returncode != 0
    with pytest.raises(RecipeError, match="processes: 2 in the run, 1 now"):
        train(replace(request, resume="auto"))
    train(replace(request, resume="auto", force_recipe=True))
