"""A training with any remedy takes the same steps whether it is killed on the way, and however a batch is cut."""

import pickle
from dataclasses import replace

import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.data import DataSpec
from ofqctl.errors import RecipeError
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.training import Training
from ofqctl.remedies import check_remedies
from ofqctl.remedies.asam import ASAM, SharpnessAware
from ofqctl.training import read_checkpoint_state
from tests.interrupting import same

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
REMEDIES = {
    "asam": "{rho: 0.3}",
    "bin_regularization": "{start: 1.0e-3, end: 0.1}",
    "gradient_l1": "{delay: 0.5}",
    "parq": "{}",
    "pull": "{start: 0.1, end: 0.3, delay: 0.0, times_lr: false, every: 0.3, noise: 0.01}",
    "satnl": "{bound: 1.1}",
    "stableqat": "{}",
    "symreg": "{start: 1.0e-3, end: 1.0e-4, pairing: '2:2'}",
    "trs": "{rate: 0.02, momentum: 0.5, gain: 5.0}",
}
REFUSED = {("satnl", "qkr")}  # merged products
SETS = {"lsq": ["weights.method=lsq", "attention.qkr=false"], "qkr": []}
STEPS, KILLED_AFTER = 3, 4  # an epoch; of two
SCRIPT = "import pickle, sys; from ofqctl.jobs.train import train; train(pickle.load(open(sys.argv[1], 'rb')))"


def stop(row, _total):
    if row["step"] == KILLED_AFTER:
        raise MemoryError


def request_for(remedies, recipe, output, *settings, **options):
    """A training with a phase of two epochs for each remedy."""
    of_each = "{{epochs: 2, lr: 3.0e-3, min_lr: 1.0e-4, {}: {}}}"
    phases = ", ".join(of_each.format(remedy, REMEDIES[remedy]) for remedy in remedies)
    short = [f"phases=[{phases}]", "batch_size=8", "distillation=null", *settings]
    sets = [f"training.{value}" for value in short] + ["calibration.images=8", *SETS[recipe]]
    return TrainRequest(
        model=ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY),
        recipe=load("demo/digits_ofq_w2a2", sets),
        data=DataSpec("digits"),
        output=output,
        device="cpu",
        **options,
    )


@pytest.mark.parametrize(
    ("remedy", "recipe"), [(r, recipe) for r in REMEDIES for recipe in SETS if (r, recipe) not in REFUSED]
)
def test_a_killed_training_in_micro_batches_goes_on_to_the_same_bits(remedy, recipe, tmp_path):
    sets = [f"steps_per_epoch={STEPS}", "drop_path=0.2", "ema=0.5"]
    options = {"grad_accum": 2, "checkpoint_every": KILLED_AFTER - 1}
    whole, killed = (request_for([remedy], recipe, tmp_path / name, *sets, **options) for name in ("whole", "killed"))
    train(whole)
    with pytest.raises(MemoryError):
        train(killed, on_step=stop)
    train(replace(killed, resume="auto"))
    one, other = (read_checkpoint_state(run.output) for run in (whole, killed))
    assert same(one.model, other.model)
    assert same(one.ema, other.ema)
    files = [(run.output / "model.safetensors").read_bytes() for run in (whole, killed)]
    assert files[0] == files[1]


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_run_is_written_after_every_epoch_of_a_phase(remedy, tmp_path):
    written = request_for([remedy], "lsq", tmp_path / "run", "steps_per_epoch=2")
    with pytest.raises(MemoryError):
        train(written, on_step=stop)
    assert load_run(written.output).model(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SETS)
def test_two_processes_take_the_steps_of_one_in_two_micro_batches(recipe, tmp_path, torchrun):
    remedies = [remedy for remedy in REMEDIES if (remedy, recipe) not in REFUSED]
    alone = request_for(remedies, recipe, tmp_path / "alone", "steps_per_epoch=2", "drop_path=0.0", grad_accum=2)
    train(alone)
    shared = replace(alone, output=tmp_path / "shared", grad_accum=1)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "request").write_bytes(pickle.dumps(shared))
    ended = torchrun(2, tmp_path / "script.py", tmp_path / "request")
    assert ended.returncode == 0, ended.stderr
    assert same(*(read_checkpoint_state(run.output).model for run in (alone, shared)))


@pytest.mark.parametrize("remedy", sorted(REMEDIES.keys() - {"asam"}))
def test_weights_with_several_latents_are_refused_where_a_remedy_knows_of_one(remedy, quantized):
    model = quantized("denseshift/vit_w3a8")
    phase = Training(phases=({remedy: {}},)).phases[0]
    with pytest.raises(RecipeError, match="acts on one latent weight for each code"):
        check_remedies(phase, model, amp=False)


def test_sharpness_is_that_of_all_latents(quantized, backward):
    model = quantized("denseshift/vit_w3a8")
    latents, seen = model.blocks[0].mlp.fc1.weight_quantizer.scales, []

    def compute():
        backward(model, 0)
        seen.append(latents.detach().clone())

    SharpnessAware(model, ASAM(), steps=1).gradients(compute)
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], latents)
