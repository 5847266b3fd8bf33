"""Remedies as a recipe asks for them: a training that is killed goes on to the bits of one that was not."""

from dataclasses import replace

import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.data import DataSpec
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.remedies import ConfidentFreezing
from ofqctl.remedies.pull import PullToCodes
from ofqctl.training import read_checkpoint_state
from tests.interrupting import StopAfter, same

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
PHASES = (
    "training.phases=[{name: train, epochs: 1, lr: 3.0e-3, freezing: {start: 0.01, end: 1.0e-3, momentum: 0.1},"
    " dampening: {end: 0.1, reduction: sum}}, {name: control, epochs: 1, lr: 1.0e-3, schedule: constant,"
    " freezing: {start: 0.5, end: 0.5, delay: 0.0}}]",
    "training.distillation=null",
    "training.batch_size=16",
    "training.steps_per_epoch=22",
    "calibration.images=16",
)


@pytest.fixture(params=["lsq", pytest.param("ofq", marks=pytest.mark.slow)])
def request_for(request, tmp_path):
    sets = ["weights.method=lsq", "attention.qkr=false"] if request.param == "lsq" else []

    def make(name, **options):
        return TrainRequest(
            model=ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY),
            recipe=load("demo/digits_ofq_w2a2", [*PHASES, *sets]),
            data=DataSpec("digits"),
            output=tmp_path / name,
            device="cpu",
            **options,
        )

    return make


def test_a_killed_run_goes_on_to_the_same_bits(request_for):
    whole, killed = request_for("whole"), request_for("killed", checkpoint_every=3)
    train(whole)
    for steps in (8, 9, 10):  # within the first phase, near its end, within the second
        with pytest.raises(MemoryError):
            train(replace(killed, resume="auto"), on_step=StopAfter(steps))
    train(replace(killed, resume="auto"))
    states = [read_checkpoint_state(run.output) for run in (whole, killed)]
    assert same(states[0].model, states[1].model)
    assert same(
        {key: t.nan_to_num() for key, t in states[0].tracker.items()},
        {key: t.nan_to_num() for key, t in states[1].tracker.items()},
    )
    frozen = {key: tensor for key, tensor in states[0].model.items() if key.endswith(".frozen")}
    assert sum(int(tensor.sum()) for tensor in frozen.values()) > 100
    weights = [(run.output / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1]
    load_run(whole.output)  # a run holds codes and no marks


def test_codes_frozen_in_one_phase_are_those_at_the_end_of_the_next(request_for):
    request = request_for("run", checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=StopAfter(23))
    before = read_checkpoint_state(request.output)
    train(replace(request, resume="auto"))
    after = read_checkpoint_state(request.output)
    held = 0
    for key, codes in before.tracker.items():
        if key.endswith(".weight.codes"):
            name = key.removesuffix(".weight.codes")
            marks = before.model[f"{name}.weight_quantizer.frozen"]
            assert torch.equal(codes[marks], after.tracker[key][marks]), name
            held += int(marks.sum())
    assert held > 100


def test_the_remedy_that_holds_codes_has_the_last_word(request_for, monkeypatch):
    order = []
    for kind in (ConfidentFreezing, PullToCodes):
        plain = kind.after_step
        monkeypatch.setattr(kind, "after_step", lambda self, plain=plain: order.append(type(self)) or plain(self))
    request = request_for("run", checkpoint_every=0)
    phases = ["training.phases=[{epochs: 1, cga: {}, pull: {}}]", "training.steps_per_epoch=1"]
    train(replace(request, recipe=load("demo/digits_ofq_w2a2", [*PHASES, *phases])))
    assert order == [PullToCodes, ConfidentFreezing]
