"""Quantizers that are defined here, and no line of the package changed: their points go the whole way, to the bit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import timm
import torch
from torch import nn

from ofqctl.artifact import load_run, save_run, save_single_file, serialize
from ofqctl.cli.inspect import render_run
from ofqctl.convert import apply_plan, describe, make_plan, operands
from ofqctl.diagnosis.static import codes_of, latents_of
from ofqctl.diagnosis.tracked import TrackerState, paths_of
from ofqctl.diagnosis.weights import weights_of_state
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import of_run
from ofqctl.export import OnnxModel, Target, arithmetic, check_exactness, write_graph
from ofqctl.grids import IntegerGrid, TableGrid
from ofqctl.jobs.analyze import AnalyzeRequest, analyze
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.jobs.export import describe as describe_file
from ofqctl.jobs.export_safetensors import SafetensorsRequest, export_safetensors
from ofqctl.jobs.inspect import InspectRequest, inspect
from ofqctl.jobs.writing import run_config
from ofqctl.layers import weight_sites
from ofqctl.models import ModelRequest, load_model
from ofqctl.oscillation import OscillationTracker
from ofqctl.ptq import calibrate, on_disk
from ofqctl.ptq.erq import ERQ, refine_by_regression
from ofqctl.ptq.task import Task
from ofqctl.quantizers import QUANTIZERS, Quantizer
from ofqctl.quantizers.base import by_group
from ofqctl.quantizers.ranges import step_of_least_error
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.plan import QuantizerPlan, quantizer_plan
from ofqctl.remedies import CGA, ConfidentFreezing, Dampening, DampeningPenalty, Freezing, IterativeFreezing

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
SIZE = (3, 32, 32)
DECODER = Path(__file__).parent / "export" / "independent_decoder.py"  # written from docs/format.md alone


class Table(Quantizer):
    """A learned step of least error for each group, times the points of a table."""

    def __init__(self, plan):
        super().__init__(plan)
        self.step = nn.Parameter(torch.ones(plan.step_shape))
        self._seen = []

    def _take_in(self, x):
        self._seen.append(by_group(x.float(), self.plan.step_shape))

    def finish(self):
        with torch.no_grad():
            self.step.copy_(step_of_least_error(torch.cat(self._seen, 1), self.grid).view_as(self.step))
        self._seen = []


class PowersOfTwo(Table):
    """No zero: at 3 bits +-1, 2, 4, 8."""

    method = "powers_of_two"

    @property
    def grid(self):
        powers = 2.0 ** torch.arange(self.range.count // 2)
        return TableGrid(self.range, torch.cat([-powers.flip(0), powers]))


class NormalFloat(Table):
    """Quantiles of a normal variable, moved by the data: a table that the plan does not know."""

    method = "normal_float"

    def __init__(self, plan):
        super().__init__(plan)
        shares = (torch.arange(self.range.count) + 0.5) / self.range.count
        self.register_buffer("points", torch.distributions.Normal(0.0, 1.0).icdf(shares))

    @property
    def grid(self):
        return TableGrid(self.range, self.points)

    def finish(self):
        self.points.add_(torch.cat(self._seen, 1).abs().mean())
        super().finish()


class Liar(PowersOfTwo):
    """Says that its points are the codes, and computes with powers of two."""

    method = "liar"

    def encode(self, x):
        encoded = super().encode(x)
        return type(encoded)(encoded.codes, encoded.step, IntegerGrid(self.range))


@pytest.fixture(autouse=True)
def methods():
    own = (PowersOfTwo, NormalFloat, Liar)
    for quantizer in own:
        QUANTIZERS.register(quantizer.method)(quantizer)
    yield
    for quantizer in own:
        del QUANTIZERS._methods[quantizer.method]


def replanned(plan, **update):
    """The plan of the same tensor for another method."""
    return quantizer_plan(**plan.model_dump(include=set(QuantizerPlan.model_fields)) | update)


def quantized(recipe, weights, activations=None, bits=3):
    """A small model, every weight and, if wanted, the inputs of the MLPs and the softmax outputs by an own method."""
    torch.manual_seed(0)
    loaded = load_model(ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY))
    recipe = load(recipe, ["weights.bits=3", "activations.bits=4"])
    plan = make_plan(loaded.model, recipe, SIZE)
    modules = {}
    for name, module in plan.modules.items():
        own = {operand for operand in module.operands if activations and (".mlp." in name or operand == "softmax")}
        modules[name] = module.model_copy(
            update={
                "weight": None if module.weight is None else replanned(module.weight, method=weights, bits=bits),
                "operands": {
                    operand: replanned(q, method=activations, bits=3, signed=True) if operand in own else q
                    for operand, q in module.operands.items()
                },
            }
        )
    plan = plan.model_copy(update={"modules": modules})
    apply_plan(loaded.model, plan)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if name.endswith(("bias", "before", "after", "key_term")):
                parameter.normal_(std=0.1)
    calibrate(loaded.model, plan, [torch.randn(8, *SIZE, generator=torch.Generator().manual_seed(1))])
    return loaded, recipe, describe(loaded.model, plan)


def saved(directory, *args, **kwargs):
    loaded, recipe, plan = quantized(*args, **kwargs)
    weights = serialize(loaded.model)
    save_run(directory, loaded.model, weights, run_config(loaded, recipe, plan, weights, 10**6), {})
    return loaded.model


CASES = {
    "powers of two": ("lsq", "powers_of_two"),
    "a table": ("lsq", "normal_float"),
    "powers of two, query and key merged": ("ofq/vit_w2a2", "powers_of_two"),
    "1 bit": ("lsq", "powers_of_two", None, 1),
    "1 bit of a built-in method": ("statsq", "statsq", None, 1),
    "activations on integers": ("lsq", "powers_of_two", "powers_of_two"),
    "activations on none": ("lsq", "statsq", "normal_float"),
}
FEW = ("powers of two", "a table", "1 bit", "activations on integers")


@pytest.fixture
def images():
    return torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", CASES)
def test_a_run_read_back_is_the_same_model_bit_for_bit(tmp_path, images, name):
    model = saved(tmp_path / "run", *CASES[name])
    again = load_run(tmp_path / "run")
    with torch.inference_mode():
        assert torch.equal(again.model(images), model(images))
    for (_, site), (_, other) in zip(weight_sites(again.model), weight_sites(model), strict=True):
        assert torch.equal(site.quantized_weight(), other.quantized_weight())
    save_single_file(tmp_path / "one.safetensors", again)
    with torch.inference_mode():
        assert torch.equal(load_run(tmp_path / "one.safetensors").model(images), model(images))


def test_inspect_shows_the_points_of_tables_and_counts_their_bytes(tmp_path):
    saved(tmp_path / "run", *CASES["powers of two"])
    result = inspect(InspectRequest(tmp_path / "run"))
    weight = next(m for m in result.modules if m.name == "blocks.0.mlp.fc1").weight
    assert weight.grid.points == (-8.0, -4.0, -2.0, -1.0, 1.0, 2.0, 4.0, 8.0)
    assert weight.bytes == 192 * 48 * 3 // 8
    lines = "\n".join(str(row) for part in render_run(result) for row in getattr(part, "rows", [part]))
    assert "-8 -4 -2 -1 1 2 4 8" in lines
    assert json.dumps(result.model_dump(mode="json"))


def test_a_quantizer_whose_grid_lies_is_found_out_before_anything_is_written(tmp_path):
    with pytest.raises(ArtifactError, match=r"blocks\.0\.attn\.qkv\.weight") as caught:
        saved(tmp_path / "run", "lsq", "liar")
    assert "nothing was written" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_quantizer_that_is_not_built_again_from_its_plan_is_found_out(tmp_path, monkeypatch):
    loaded, recipe, plan = quantized("lsq", "powers_of_two", "powers_of_two")
    weights = serialize(loaded.model)
    config = run_config(loaded, recipe, plan, weights, 1)
    grid = PowersOfTwo.grid
    changed = operands(loaded.model.blocks[0].mlp.fc1)["input"]
    tripled = property(lambda q: TableGrid(q.range, 3 * grid.fget(q).table) if q is changed else grid.fget(q))
    monkeypatch.setattr(PowersOfTwo, "grid", tripled)
    with pytest.raises(ArtifactError, match=r"blocks\.0\.mlp\.fc1: its plan gives its input a different grid"):
        save_run(tmp_path / "run", loaded.model, weights, config, {})


def test_float_tensors_that_were_changed_on_the_way_are_found_out(tmp_path):
    loaded, recipe, plan = quantized("lsq", "powers_of_two")
    weights = serialize(loaded.model)
    with torch.no_grad():
        loaded.model.head.bias.add_(1.0)
    with pytest.raises(ArtifactError, match=r"head\.bias"):
        save_run(tmp_path / "run", loaded.model, weights, run_config(loaded, recipe, plan, weights, 1), {})


FLOAT = {
    "a table": "the points of its weight are not integers of 8 bits",
    "activations on none": "the points of its input are not integers of 8 bits",
}


def write(directory, target="onnxruntime"):
    run = load_run(directory)
    graph = write_graph(run.model, describe_file(of_run(run), target, pixels=False), target, None)
    return run.model, graph, graph.serialize()


@pytest.mark.parametrize(
    ("name", "target"),
    [
        pytest.param(name, target, marks=() if target == "onnxruntime" and name in FEW else pytest.mark.slow)
        for name in CASES
        for target in get_args(Target)
    ],
)
def test_every_product_of_a_graph_is_torchs_and_on_integers_where_the_points_are(tmp_path, images, name, target):
    saved(tmp_path / "run", *CASES[name])
    model, graph, content = write(tmp_path / "run", target)
    found = check_exactness(content, graph.lowered, model, images)
    assert found.faults() == []
    assert (found.different, found.wrong_weights) == (0, [])
    assert found.weights == len(list(weight_sites(model)))
    assert {p.obstacle for p in graph.products.values()} - {None} == ({FLOAT[name]} if name in FLOAT else set())


@pytest.mark.parametrize("name", ["powers of two", pytest.param("a table", marks=pytest.mark.slow)])
def test_an_exported_file_is_verified_described_and_evaluates_as_the_run(tmp_path, images, name):
    saved(tmp_path / "run", *CASES[name])
    result = export_onnx(ExportRequest(ModelRequest(str(tmp_path / "run")), output=tmp_path / "x.onnx", images=8))
    assert result.verification.exactness.exact
    assert (result.products.float == 0) == (name not in FLOAT)
    said = inspect(InspectRequest(tmp_path / "x.onnx")).verification
    assert said.model_dump() == result.verification.model_dump(mode="json")
    with torch.inference_mode():
        expected = load_run(tmp_path / "run").model(images)
    assert torch.allclose(OnnxModel(tmp_path / "x.onnx")(images), expected, atol=1e-4 * float(expected.abs().max()))
    command = [sys.executable, DECODER, tmp_path / "run", tmp_path / "x.onnx"]
    assert "bit for bit" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_weight_that_the_writer_puts_into_its_table_wrongly_is_found_out(tmp_path, images, monkeypatch):
    saved(tmp_path / "run", *CASES["powers of two"])
    right = arithmetic.weight_of

    def wrong(name, encoded):
        weight = right(name, encoded)
        if name == "blocks.0.mlp.fc2.weight":
            weight.levels[-1] += 1
        return weight

    monkeypatch.setattr("ofqctl.export.marking.weight_of", wrong)
    model, graph, content = write(tmp_path / "run")
    found = check_exactness(content, graph.lowered, model, images)
    assert found.wrong_weights == ["blocks.0.mlp.fc2.weight"]
    assert "differs from the model's" in found.faults()[0]


def test_steps_that_are_off_by_less_than_any_product_shows_are_found_out(tmp_path, images):
    saved(tmp_path / "run", *CASES["powers of two"])
    model, graph, content = write(tmp_path / "run")
    written = onnx.load_from_string(content)
    step = next(t for t in written.graph.initializer if t.name == "head.weight.step")
    values = onnx.numpy_helper.to_array(step)
    step.CopyFrom(onnx.numpy_helper.from_array(np.nextafter(values, np.float32(1)), step.name))
    found = check_exactness(written.SerializeToString(), graph.lowered, model, images)
    assert found.worst < 1e-5
    assert found.wrong_weights == ["head.weight"]


def test_compressed_tensors_refuses_tables_with_the_reason(tmp_path):
    off = ["activations.bits=32", "first.activations.bits=32", "last.activations.bits=32"]
    torch.manual_seed(0)
    loaded = load_model(ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY))
    recipe = load("lsq", ["weights.bits=3", *off])
    plan = make_plan(loaded.model, recipe, SIZE)
    own = {
        name: m.model_copy(update={"weight": replanned(m.weight, method="powers_of_two")})
        for name, m in plan.modules.items()
    }
    plan = plan.model_copy(update={"modules": own})
    apply_plan(loaded.model, plan)
    calibrate(loaded.model, plan, [torch.randn(2, *SIZE)])
    weights = serialize(loaded.model)
    save_run(tmp_path / "run", loaded.model, weights, run_config(loaded, recipe, plan, weights, 1), {})
    with pytest.raises(ArtifactError, match="not evenly spaced"):
        export_safetensors(SafetensorsRequest(tmp_path / "run", "compressed-tensors", tmp_path / "ct"))


def backward(model, images, step):
    model.zero_grad()
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(step))
    nn.functional.cross_entropy(model(images + 0.3 * noise), torch.arange(len(images)) % 10).backward()


def codes(model):
    return {name: site.encode_weight().codes.clone() for name, site in weight_sites(model)}


@pytest.mark.parametrize("name", ["powers of two", "a table", "powers of two, query and key merged"])
def test_annealing_changes_no_confident_code(images, name):
    model = quantized(*CASES[name])[0].model.train()
    remedy = ConfidentFreezing(model, CGA(boundary_range=0.1), steps=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(4):
        backward(model, images, step)
        remedy.before_step()
        before, held = codes(model), {site: b.held.clone() for site, b in remedy._starts.items()}
        optimizer.step()
        remedy.after_step()
        after = codes(model)
        for site_name, site in weight_sites(model):
            assert 0 < held[site].float().mean() < 1
            assert torch.equal(before[site_name][held[site]], after[site_name][held[site]])


@pytest.mark.parametrize("name", ["powers of two", "a table"])
def test_frozen_weights_lie_on_points_of_the_table_and_stay(images, name):
    model = quantized(*CASES[name])[0].model.train()
    remedy = IterativeFreezing(model, Freezing(start=1e-6, end=1e-6, delay=0.25, momentum=0.1), steps=12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = None
    for step in range(12):
        backward(model, images, step)
        for parameter in model.parameters():
            if step % 2 and parameter.grad is not None:
                parameter.grad.neg_()
        remedy.before_step()
        optimizer.step()
        remedy.after_step()
        now = codes(model), {n: site.weight_quantizer.frozen.clone() for n, site in weight_sites(model)}
        for site_name, held in (before or now)[1].items():
            assert torch.equal(now[0][site_name][held], (before or now)[0][site_name][held])
        before = now
    assert sum(int(held.sum()) for held in before[1].values()) > 0


def test_dampening_draws_to_the_points_of_the_table_and_leaves_weights_beyond_them_alone():
    model = quantized(*CASES["powers of two"])[0].model.train()
    DampeningPenalty(model, Dampening(start=1.0, end=1.0, delay=0.0, reduction="mean"), steps=1).penalty().backward()
    site = model.blocks[0].mlp.fc1
    encoded, weight = site.encode_weight(), site.weight.detach()
    beyond = weight.abs() > 8 * encoded.step
    points = torch.tensor([-8.0, -4, -2, -1, 1, 2, 4, 8])
    nearest = points[((weight / encoded.step)[..., None] - points).abs().argmin(-1)] * encoded.step
    expected = torch.where(beyond, 0.0, 2 * (weight - nearest) / weight.numel())
    torch.testing.assert_close(site.weight.grad, expected)


def test_the_tracker_and_the_analysis_see_positions_between_the_points(tmp_path, images):
    loaded, _, plan = quantized(*CASES["powers of two"])
    model = loaded.model.train()
    tracker = OscillationTracker(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for step in range(6):
        backward(model, images, step)
        optimizer.step()
        tracker.update()
    weights = list(weights_of_state(plan, model.state_dict()))
    for weight in weights:
        grid = weight.encoded.grid
        assert sum(codes_of(weight).counts) == weight.encoded.codes.numel()
        found = latents_of(weight, 0.005)
        in_steps = weight.latent / weight.encoded.step
        gaps = grid.table.diff()
        over = (in_steps > 8 + gaps[-1] / 2) | (in_steps < -8 - gaps[0] / 2)
        assert found.clipped == pytest.approx(over.float().mean().item())
    paths = paths_of(weights, TrackerState(tracker.state_dict(), 0.005, 5))
    for path in paths:
        inside = [(p, c) for p, c in zip(path.position, path.code, strict=True) if -4.5 < p < 3.5]
        assert all(abs(p - c) <= 0.5 + 1e-4 for p, c in inside)
    assert paths
    saved(tmp_path / "run", *CASES["powers of two"])
    assert analyze(AnalyzeRequest([tmp_path / "run"])).checkpoints[0].layers


@pytest.mark.parametrize("name", ["powers of two", "a table"])
def test_erq_rounds_to_neighbouring_points_and_lowers_the_error(name):
    loaded, _, plan = quantized(*CASES[name])
    torch.manual_seed(0)
    original = timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY).eval()
    original.load_state_dict({k: v for k, v in loaded.model.state_dict().items() if k in original.state_dict()})
    unseen = torch.randn(16, *SIZE, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        before = (loaded.model(unseen) - original(unseen)).square().mean()
        batches = torch.randn(24, *SIZE, generator=torch.Generator().manual_seed(5)).split(8)
        with on_disk(batches, torch.device("cpu")) as stored:
            refine_by_regression(Task(loaded.model, original, plan, stored, lambda *_: None), ERQ())
        after = (loaded.model(unseen) - original(unseen)).square().mean()
    assert after < before
