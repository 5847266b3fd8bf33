"""What only real devices do: bfloat16, compiled quantizers, several processes; and files from start to end."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.data import DataSpec
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.jobs.quantize import QuantizeRequest, quantize
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load

DIGITS = DataSpec("digits")
KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
MODEL = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=KWARGS)
SETS = [
    "training.batch_size=32",  # enough for the quantizers of a layer to be worth compiling
    "training.steps_per_epoch=4",
    "training.phases=[{epochs: 1}, {epochs: 1, cga: {}}]",
    "calibration.images=32",
    "calibration.batch_size=32",
]
STEPS = 8

PROCESS = """
import os, pickle, sys
import torch
from torch import distributed as dist
from ofqctl.jobs.train import train
from ofqctl.training import processes
request = pickle.load(open(sys.argv[1], "rb"))
if request.device == "cuda" and torch.cuda.device_count() < 2:  # both on the one there is, which only gloo can do
    join = dist.init_process_group
    processes._gpu = lambda _local: torch.device("cuda", 0)
    dist.init_process_group = lambda _backends, **options: join("gloo", **options)
losses = []
train(request, on_step=lambda row, _total: losses.append(row["step_loss"]))
if os.environ["RANK"] == "0":
    pickle.dump(losses, open(sys.argv[2], "wb"))
"""


@pytest.fixture
def request_for(tmp_path):
    """A request to train on a device, into a directory of its own."""

    def make(name: str, device: str, **options) -> TrainRequest:
        recipe = load("demo/digits_ofq_w2a2", SETS)
        return TrainRequest(MODEL, recipe, DIGITS, output=tmp_path / name, device=device, **options)

    return make


@pytest.fixture
def losses_of():
    """Trains, and gives the loss of every step."""

    def run(request: TrainRequest) -> list[float]:
        losses: list[float] = []
        train(request, on_step=lambda row, _total: losses.append(row["step_loss"]))
        assert len(losses) == STEPS
        return losses

    return run


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        pytest.param({}, 0.01, id="float32"),
        pytest.param({"compiled": True}, 0.01, id="compiled"),
        pytest.param({"amp": True}, 0.05, id="bfloat16"),
        pytest.param({"amp": True, "compiled": True}, 0.05, id="bfloat16 compiled"),
    ],
)
def test_losses_are_those_of_float32_on_the_cpu(hardware, request_for, losses_of, options, tolerance):
    found = losses_of(request_for("there", hardware.type, **options))
    assert found == pytest.approx(losses_of(request_for("here", "cpu")), rel=tolerance)


def test_two_processes_take_the_steps_of_one(hardware, request_for, losses_of, torchrun, tmp_path):
    script, asked, losses = (tmp_path / name for name in ("script.py", "request", "losses"))
    script.write_text(PROCESS)
    asked.write_bytes(pickle.dumps(request_for("two", hardware.type)))
    ended = torchrun(2, script, asked, losses)
    assert ended.returncode == 0, ended.stderr
    alone = losses_of(request_for("one", hardware.type, grad_accum=2))
    assert pickle.loads(losses.read_bytes()) == pytest.approx(alone, rel=0.01)


def test_a_run_goes_on_after_an_interruption(hardware, request_for, losses_of):
    whole = losses_of(request_for("whole", hardware.type, checkpoint_every=1))
    request = request_for("stopped", hardware.type, checkpoint_every=1)
    losses: list[float] = []

    def stop(row, _total):
        losses.append(row["step_loss"])
        if len(losses) == 3:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(request, on_step=stop)
    train(replace(request, resume="auto"), on_step=lambda row, _total: losses.append(row["step_loss"]))
    assert losses[:3] + losses[-5:] == pytest.approx(whole, rel=0.01)


def test_a_model_quantized_there_is_exported_and_verified_here(hardware, tmp_path):
    sets = ["calibration.images=32", "ptq.1.iterations=20", "ptq.1.views=32", "weights.bits=4", "activations.bits=4"]
    results = {}
    for device in (hardware.type, "cpu"):
        output: Path = tmp_path / f"on-{device}"
        request = QuantizeRequest(MODEL, load("ptq/best", sets), output=output, calibration=DIGITS, device=device)
        if not output.exists():
            quantize(request)
        model = load_run(output).model.eval()
        images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            results[device] = model(images)
    away = (results[hardware.type] - results["cpu"]).square().mean() / results["cpu"].var()
    assert float(away) < 0.05  # 20 steps of Adam, which makes something of gradients that are nothing but rounding
    exported = export_onnx(ExportRequest(ModelRequest(str(tmp_path / f"on-{hardware.type}"))))
    assert exported.verification
