"""A training with any remedy that is killed goes on to the bits of one that was not, in several micro-batches."""

from dataclasses import replace

import pytest
import torch

from ofqctl.data import DataSpec
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.training import read_checkpoint_state

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
REMEDIES = {
    "asam": "{rho: 0.3}",
    "bin_regularization": "{start: 1.0e-3, end: 0.1}",
    "parq": "{}",
    "pull": "{start: 0.1, end: 0.3, delay: 0.0, times_lr: false, every: 0.3, noise: 0.01}",
    "satnl": "{bound: 1.1}",
    "symreg": "{start: 1.0e-3, end: 1.0e-4, pairing: '2:2'}",
}
REFUSED = {("satnl", "ofq")}  # merged products
STEPS, KILLED_AFTER = 6, 4


def stop(row, _total):
    if row["step"] == KILLED_AFTER:
        raise MemoryError


def request_for(remedy, recipe, output, *sets):
    phases = f"[{{epochs: 1, lr: 3.0e-3, min_lr: 1.0e-4, {remedy}: {REMEDIES[remedy]}}}]"
    short = ["batch_size=8", f"steps_per_epoch={STEPS}", "drop_path=0.2", "ema=0.5", "distillation=null"]
    return TrainRequest(
        model=ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY),
        recipe=load(
            recipe,
            [f"training.phases={phases}", *(f"training.{value}" for value in short), "calibration.images=8", *sets],
        ),
        data=DataSpec("digits"),
        output=output,
        device="cpu",
        grad_accum=2,
        checkpoint_every=KILLED_AFTER - 1,
    )


@pytest.mark.parametrize(
    ("remedy", "recipe"), [(r, recipe) for r in REMEDIES for recipe in ("lsq", "ofq") if (r, recipe) not in REFUSED]
)
def test_a_killed_training_goes_on_to_the_same_bits(remedy, recipe, tmp_path):
    sets = ["weights.method=lsq", "attention.qkr=false"] if recipe == "lsq" else []
    whole, killed = (
        request_for(remedy, "demo/digits_ofq_w2a2", tmp_path / name, *sets) for name in ("whole", "killed")
    )
    train(whole)
    with pytest.raises(MemoryError):
        train(killed, on_step=stop)
    train(replace(killed, resume="auto"))
    states = [read_checkpoint_state(run.output) for run in (whole, killed)]
    for one, other in ((states[0].model, states[1].model), (states[0].ema, states[1].ema)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    files = [(run.output / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert files[0] == files[1]
