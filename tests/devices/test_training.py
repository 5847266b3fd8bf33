"""Training on a device: every registered remedy and term, the tracker, going on with a run, and what comes out."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from ofqctl.artifact import load_run
from ofqctl.data import DataSpec
from ofqctl.diagnosis.opening import open_source
from ofqctl.jobs.evaluate import EvaluateRequest, evaluate
from ofqctl.jobs.live import LiveRequest, live_steps
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.layers import weight_sites
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.methods import REMEDIES, TERMS
from ofqctl.training import Engine, read_checkpoint_state

CPU = torch.device("cpu")
DIGITS = DataSpec("digits")
TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
MODEL = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY)
SHORT = ["training.batch_size=8", "training.steps_per_epoch=2", "training.optimizer.lr=2e-4"]
QUANTIZED = [*SHORT, "calibration.images=8", "calibration.batch_size=8"]
EAGER = {"freezing": "{start: 1e-3, end: 1e-3, delay: 0, momentum: 0.5}", "dampening": "{start: 1, end: 1, delay: 0}"}

NEEDED = {  # by remedies that do not work on the weights of the recipe
    "satnl": ["attention.qkr=false"],
    "shrinking": ["attention.qkr=false", "weights.method=aoq", "weights.granularity=tensor"],
}


def phases(*others: str) -> str:
    """One phase of an epoch for each set of other keys."""
    return f"training.phases=[{', '.join(f'{{epochs: 1, {keys}}}' for keys in others)}]"


def terms(gives: str) -> list[str]:
    """Every registered term of the objective that a model with this output can learn from."""
    other = "embeddings" if gives == "classes" else "classes"
    fitting = (name for name, method in TERMS.methods().items() if f"of_{other}" not in method.traits)
    return [f"training.terms.{name}={{}}" for name in fitting]


AUGMENTED = [phases("quantized: weights"), "training.optimizer.clip_grad=0.1", "training.ema=0.9"]
MIXED = ["training.augmentation.mixup=0.8", "training.augmentation.cutmix=1.0"]
CASES = {
    "float weights": ("demo/digits_float", [*SHORT, phases("")]),
    "float weights, remedy oscreg": ("demo/digits_float", [*SHORT, phases("oscreg: {}")]),
    "every term of classes, mixed images, averaged weights": (
        "demo/digits_ofq_w2a2",
        [*QUANTIZED, *AUGMENTED, *terms("classes"), *MIXED],
    ),
    "every term of embeddings, averaged weights": (
        "ofq/backbone_w2a2",
        [*QUANTIZED, *AUGMENTED, *terms("embeddings")],
    ),
} | {
    f"remedy {name}": (
        "demo/digits_ofq_w2a2",
        [*QUANTIZED, *NEEDED.get(name, []), phases(f"{name}: {EAGER.get(name, '{}')}")],
    )
    for name in REMEDIES.methods()
    if name != "oscreg"
}


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Trains on a device; gives the losses of the steps and the request. Ends after ``stop`` steps if that is given."""

    def run(place: torch.device, recipe: str, sets=(), *, model=MODEL, stop: int = 0, name: str = "", **options):
        for job in ("train", "live", "evaluate"):
            monkeypatch.setattr(f"ofqctl.jobs.{job}.pick_device", lambda _name: place)
        output: Path = tmp_path / (name or place.type)
        request = TrainRequest(model, load(recipe, sets), DIGITS, output=output, **options)
        losses: list[float] = []

        def step(row, _total):
            losses.append(row["step_loss"])
            if len(losses) == stop:
                raise MemoryError

        if stop:
            with pytest.raises(MemoryError):
                train(request, on_step=step)
        else:
            train(request, on_step=step)
        return losses, request

    return run


@pytest.fixture
def start(tmp_path):
    """The request for a model whose weights are random, changed by a function."""

    def request(nudge) -> ModelRequest:
        torch.manual_seed(0)
        state = timm.create_model(MODEL.name, num_classes=MODEL.num_classes, **TINY).state_dict()
        save_file({name: nudge(tensor) for name, tensor in state.items()}, tmp_path / "start.safetensors")
        return replace(MODEL, checkpoint=tmp_path / "start.safetensors")

    return request


def results_of(directory: Path) -> dict[str, torch.Tensor]:
    """What a run computes, on the CPU, and the codes it holds."""
    model = load_run(directory).model.eval()
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = {"logits": model(images)}
    return found | {name: site.encode_weight().codes for name, site in weight_sites(model)}


@pytest.mark.parametrize("case", CASES)
def test_training_on_a_device_takes_the_steps_of_the_cpu(alike, trained, start, case):
    def compute(place, nudge):
        given = start(nudge)
        model = replace(given, features=True, num_classes=None) if "embeddings" in case else given
        losses, request = trained(place, *CASES[case], model=model, overwrite=True)
        return results_of(request.output) | {"losses": torch.tensor(losses)}

    alike(compute)


def test_a_run_goes_on_where_it_was_with_everything_on_the_device(device, near, trained, monkeypatch):
    sets = [*QUANTIZED, phases(f"freezing: {EAGER['freezing']}", "")]
    _, whole = trained(device, "demo/digits_ofq_w2a2", sets, name="whole", checkpoint_every=1)
    _, request = trained(device, "demo/digits_ofq_w2a2", sets, name="stopped", checkpoint_every=1, stop=1)
    places: set[str] = set()
    fit = Engine.fit

    def watched(engine):
        places.update(tensor.device.type for tensor in engine.model.state_dict().values())
        return fit(engine)

    monkeypatch.setattr(Engine, "fit", watched)
    train(replace(request, resume="auto"))
    assert places == {device.type}
    expected = results_of(whole.output)
    for name, found in results_of(request.output).items():
        near(found, expected[name], name)
    counted, wanted = (read_checkpoint_state(r.output).tracker for r in (request, whole))
    for name, tensor in wanted.items():
        if name.endswith((".codes", ".frequency", ".flips", ".recent_flips")):
            near(counted[name], tensor, name)


def test_live_steps_and_accuracies_are_those_of_the_cpu(device, near, trained):
    live, correct = {}, {}
    for place in (device, CPU):
        _, request = trained(place, "demo/digits_ofq_w2a2", [*QUANTIZED, phases("")])
        found, _ = live_steps(open_source(request.output), LiveRequest(DIGITS, steps=2))
        live[place] = torch.tensor([step.loss for step in found.steps])
        measured = evaluate(EvaluateRequest(ModelRequest(str(request.output)), DIGITS, limit=64))
        correct[place] = measured.top1
    near(live[device], live[CPU])
    assert correct[device] == pytest.approx(correct[CPU], abs=2.0)
