"""Each learned method the whole way: trained on the digits, saved, read, inspected, analyzed, exported, trained on."""

import shutil
from dataclasses import dataclass, field

import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.data import DataSpec
from ofqctl.diagnosis.opening import open_source
from ofqctl.jobs.analyze import AnalyzeRequest, analyze
from ofqctl.jobs.evaluate import EvaluateRequest, evaluate
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.jobs.inspect import InspectRequest, inspect
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.layers import weight_sites
from ofqctl.models import ModelRequest
from ofqctl.packing import packed_size
from ofqctl.quantizers.lcq import LCQ
from ofqctl.recipe.catalogue import load

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
QUICK = (
    "training.phases=[{name: train, epochs: 2, lr: 1.0e-4}]",
    "first.weights.method=uniform",
    "last.weights.method=uniform",
    "training.batch_size=32",
    "training.steps_per_epoch=4",
    "training.distillation=null",
    "calibration.images=16",
    "calibration.batch_size=16",
)
FC1 = "blocks.0.mlp.fc1"


@dataclass(frozen=True)
class Case:
    """A recipe, its changes, and why products are in float, if some are."""

    recipe: str
    sets: tuple[str, ...] = ()
    reasons: frozenset[str] = field(default_factory=frozenset)
    bits: int = 3


CASES = {
    "lcq": Case("lcq/vit_w3a3"),
    "lcq, points that are no integers": Case(
        "lcq/vit_w3a3",
        ("weights.requantize=false", "activations.requantize=false"),
        frozenset({"the points of its input are not integers of 8 bits"}),
    ),
    "lcq, weights alone, query and key merged": Case(
        "lcq/vit_w3a3",
        ("weights.requantize=false", "activations.method=lsq", "attention.qkr=true"),
        frozenset({"the points of its weight are not integers of 8 bits"}),
    ),
    "aoq": Case("aoq/vit_w2a2", bits=2),
    "daq at 1 bit": Case("daq/vit_w1a1", bits=1),
    "daq": Case("daq/vit_w1a1", ("weights.bits=3", "activations.bits=3")),
    "denseshift": Case("denseshift/vit_w3a8"),
    "denseshift at 2 bits, query and key merged": Case(
        "denseshift/vit_w3a8", ("weights.bits=2", "weights.step=rms", "attention.qkr=true"), bits=2
    ),
    "denseshift at 4 bits": Case("denseshift/vit_w3a8", ("weights.bits=4", "weights.start=random"), bits=4),
    "denseshift of one latent weight": Case("denseshift/vit_w3a8", ("weights.decomposition=false",)),
    "lcq at 2 bits": Case("lcq/vit_w3a3", ("weights.bits=2", "activations.bits=2"), bits=2),
}


def request_of(case, output, model=None, *sets):
    model = model or ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY)
    recipe = load(case.recipe, [*QUICK, *case.sets, *sets])
    return TrainRequest(model=model, recipe=recipe, data=DataSpec("digits"), output=output, device="cpu")


FAST = ("lcq", "denseshift", "daq at 1 bit")  # one of each method


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES]
)
def trained(tmp_path_factory, request):
    """A case, and its run of 2 epochs of 4 steps each, tracked; curves of LCQ start far from straight."""
    case, directory = CASES[request.param], tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        finish = LCQ.finish
        patch.setattr(LCQ, "finish", lambda own: (finish(own), torch.nn.init.normal_(own.theta)))
        train(request_of(case, directory))
    return case, directory


def codes_of(model):
    return {name: site.encode_weight().codes for name, site in weight_sites(model)}


def test_the_run_has_the_codes_of_the_state_packed_at_their_bits(trained):
    case, run = trained
    read = load_run(run)
    sites = dict(weight_sites(read.model))
    parts = {}
    for weight in open_source(run).read_weights():
        parts.setdefault(f"{weight.name}.weight", []).append(weight.encoded.decode())
    for name, site in sites.items():
        assert torch.equal(torch.cat(parts[name]), site.quantized_weight()), name
    for module in inspect(InspectRequest(run)).modules:
        if module.name == FC1:
            assert module.weight.bits == case.bits
            assert module.weight.bytes == packed_size(192 * 48, case.bits)
    low = sum(s.latent().numel() for n, s in sites.items() if n.startswith("blocks"))
    rest = sum(s.latent().numel() for n, s in sites.items() if not n.startswith("blocks"))
    assert read.ledger.codes == rest + sum(
        packed_size(s.latent().numel(), case.bits) for n, s in sites.items() if n.startswith("blocks")
    )
    assert low > rest


def test_the_analysis_puts_every_position_into_the_bin_of_its_code(trained):
    _, run = trained
    report = analyze(AnalyzeRequest([run])).checkpoints[0]
    assert report.steps == 8 and all(layer.tracked for layer in report.layers)
    for weight in open_source(run).read_weights():
        position, codes = weight.encoded.position(weight.latent), weight.encoded.grid.range
        inside = (position >= codes.low - 0.5) & (position <= codes.high + 0.5)
        assert ((position - weight.encoded.codes).abs() <= 0.5 + 1e-3)[inside].all(), weight.name
    for path in report.paths:
        for position, code in zip(path.position, path.code, strict=True):
            assert abs(position - code) <= 0.5 + 1e-3 or code in (min(path.code), max(path.code))


def test_the_exported_file_is_exact_says_what_is_in_float_and_evaluates_as_the_run(trained, tmp_path):
    case, run = trained
    file = tmp_path / "x.onnx"
    result = export_onnx(ExportRequest(ModelRequest(str(run)), output=file, images=4))
    assert result.verification.exactness.exact
    assert result.products.reasons.keys() == case.reasons
    of_run, of_file = (
        evaluate(EvaluateRequest(ModelRequest(str(path)), data=DataSpec("digits"), limit=64)) for path in (run, file)
    )
    assert of_run.top1 == pytest.approx(of_file.top1, abs=1.6)


def test_codes_alone_are_trained_on_from_these_very_codes(trained, tmp_path):
    case, run = trained
    packed = tmp_path / "packed"
    shutil.copytree(run, packed, ignore=shutil.ignore_patterns("last.pt", "oscillation.safetensors"))
    before = codes_of(load_run(packed).model)
    still = "training.phases=[{name: train, epochs: 1, lr: 1.0e-12, schedule: constant}]"
    onward = request_of(case, tmp_path / "still", ModelRequest(str(packed)), still, "training.optimizer.weight_decay=0")
    train(onward)
    after = codes_of(load_run(tmp_path / "still").model)
    assert all(torch.equal(before[name], after[name]) for name in before)
