"""Live figures against a step-by-step loop in plain Python, and live steps against the training they are of."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from ofqctl.data import DataSpec
from ofqctl.diagnosis.live import LiveMeter
from ofqctl.diagnosis.opening import open_source
from ofqctl.errors import ArtifactError
from ofqctl.jobs.live import LiveRequest, live_steps
from ofqctl.layers import QuantLinear
from ofqctl.recipe import ModulePlan, Plan, quantizer_plan

MOMENTUM, THRESHOLD = 0.1, 0.05


class Oracle:
    """All weights of one layer, by the definitions."""

    def __init__(self, codes):
        self.codes, self.direction = list(codes), [0] * len(codes)
        self.frequency = [0.0] * len(codes)
        self.flips = self.oscillations = self.same = self.pairs = 0
        self.sign = None

    def step(self, codes, gradient):
        for n, code in enumerate(codes):
            direction = (code > self.codes[n]) - (code < self.codes[n])
            back = direction != 0 and direction == -self.direction[n]
            self.flips += direction != 0
            self.oscillations += back
            self.frequency[n] = MOMENTUM * back + (1 - MOMENTUM) * self.frequency[n]
            self.direction[n] = direction or self.direction[n]
        self.codes = list(codes)
        sign = [(g > 0) - (g < 0) for g in gradient]
        for one, other in zip(sign, self.sign or [0] * len(sign), strict=True):
            self.pairs += one * other != 0
            self.same += one * other > 0
        self.sign = sign


@st.composite
def walks(draw):
    """Codes and gradients of a few weights, step by step; the first codes are the start."""
    weights, steps = draw(st.integers(1, 6)), draw(st.integers(1, 25))
    code = st.integers(-2, 1)
    codes = [draw(st.lists(code, min_size=weights, max_size=weights)) for _ in range(steps + 1)]
    number = st.sampled_from([-1.5, -0.25, 0.0, 0.25, 2.0])
    gradients = [draw(st.lists(number, min_size=weights, max_size=weights)) for _ in range(steps)]
    return codes, gradients


@settings(max_examples=120, deadline=None)
@given(walks())
def test_figures_of_weights_are_those_of_a_plain_loop(walk):
    codes, gradients = walk
    plan = ModulePlan(kind="linear", weight=quantizer_plan(method="lsq", bits=2, step_shape=(1, 1)))
    layer = QuantLinear(nn.Linear(len(codes[0]), 1, bias=False), plan)
    layer.weight.data = torch.tensor([codes[0]], dtype=torch.float32)
    meter = LiveMeter(nn.Sequential(layer), Plan(modules={"0": plan}), None, momentum=MOMENTUM, threshold=THRESHOLD)
    oracle = Oracle(codes[0])
    for row, gradient in zip(codes[1:], gradients, strict=True):
        layer.weight.data = torch.tensor([row], dtype=torch.float32)
        layer.weight.grad = torch.tensor([gradient])
        before = oracle.flips
        oracle.step(row, gradient)
        meter.update(0.0)
        assert meter.steps[-1].flips == pytest.approx((oracle.flips - before) / len(row))
    steps, weights = len(gradients), len(codes[0])
    for figures in (meter.total, meter.layers[0]):
        assert figures.flips_per_step == pytest.approx(oracle.flips / steps / weights)
        assert figures.oscillations_per_step == pytest.approx(oracle.oscillations / steps / weights)
        assert figures.oscillating == pytest.approx(sum(f > THRESHOLD for f in oracle.frequency) / weights)
        expected = oracle.same / oracle.pairs if oracle.pairs else None
        assert figures.sign_agreement == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_figures_of_activations_are_those_of_a_plain_loop(steps, seed):
    operand = quantizer_plan(method="lsq", bits=2, step_shape=())
    plans = {name: ModulePlan(kind="linear", operands={"input": operand}) for name in ("0", "1")}
    torch.manual_seed(seed)
    model = nn.Sequential(*(QuantLinear(nn.Linear(4, 4), plan) for plan in plans.values()))
    weight = quantizer_plan(method="lsq", bits=2, step_shape=(1, 1))
    plans["2"] = ModulePlan(kind="linear", weight=weight)
    model.append(QuantLinear(nn.Linear(4, 2), plans["2"]))
    probe = torch.randn(3, 4)
    meter = LiveMeter(model, Plan(modules=plans), probe, momentum=MOMENTUM, threshold=THRESHOLD)

    def codes():
        """By the contract, one value at a time."""
        found, x = [], probe
        for layer in list(model)[:2]:
            found.append([min(max(round(v), -2), 1) for v in x.flatten().tolist()])
            x = layer(x)
        return found

    before, changed = codes(), [0, 0]
    for step in range(steps):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(4, 4))
        meter.update(0.0)
        now = codes()
        differs = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in zip(before, now, strict=True)]
        changed = [total + count for total, count in zip(changed, differs, strict=True)]
        assert meter.steps[step].activations_changed == pytest.approx(sum(differs) / 24)
        before = now
    assert [a.changed for a in meter.activations] == pytest.approx([count / steps / 12 for count in changed])
    assert meter.activations_changed == pytest.approx(sum(changed) / steps / 24)


def test_live_steps_are_the_steps_that_training_takes_and_leave_no_trace(ofq_run):
    before = {path.name: path.read_bytes() for path in ofq_run.iterdir()}
    live, notes = live_steps(open_source(ofq_run), LiveRequest(DataSpec("digits"), 4, device="cpu"))
    assert {path.name: path.read_bytes() for path in ofq_run.iterdir()} == before
    assert len(live.steps) == 4 and live.phase == "cga" and live.lr == pytest.approx(1e-5)
    assert not any("without state" in note for note in notes)
    assert live.batch_size == 64 and live.probe_images == 8
    assert {(layer.name, layer.role) for layer in live.layers} >= {
        ("blocks.0.attn.products.qk", "qk"),
        ("head", "head"),
    }
    operands = {(a.name, a.operand) for a in live.activations}
    assert {("blocks.0.attn", "softmax"), ("blocks.0.attn", "qkx"), ("blocks.1.mlp.fc2", "input")} <= operands
    assert all(0.0 <= a.changed <= 1.0 for a in live.activations)
    merged = next(layer for layer in live.layers if layer.role == "qk")
    assert merged.sign_agreement is not None  # its gradients are in no parameter


def test_live_steps_are_those_that_training_itself_took(halfway):
    """Same optimizer state, learning rate, images and random numbers: the same codes flip."""
    request = LiveRequest(DataSpec("digits"), 22, device="cpu")
    live, notes = live_steps(open_source(halfway), request)
    assert not notes
    tracker = load_file(halfway / "oscillation.safetensors")
    recent = {key: tensor for key, tensor in tracker.items() if key.endswith(".recent_flips")}
    flips = [int(sum(tensor[-22 + step].sum() for tensor in recent.values())) for step in range(22)]
    weights = sum(layer.weights for layer in live.layers)
    assert [round(step.flips * weights) for step in live.steps] == flips
    assert sum(flips) > 100
    again, _ = live_steps(open_source(halfway / "last.pt"), request)
    assert again == live


def test_small_data_makes_smaller_batches_and_says_so(ofq_run):
    opened = open_source(ofq_run)
    opened.checkpoint.recipe = copy.deepcopy(opened.checkpoint.recipe)
    opened.checkpoint.recipe["training"]["batch_size"] = 5000
    live, notes = live_steps(opened, LiveRequest(DataSpec("digits"), 1, device="cpu"))
    assert live.batch_size == 1437
    assert any("batches have all 1437 images, those of the recipe 5000" in note for note in notes)


def test_a_teacher_that_is_gone_is_done_without_and_said(ofq_run):
    opened = open_source(ofq_run)
    opened.checkpoint.recipe = copy.deepcopy(opened.checkpoint.recipe)
    opened.checkpoint.recipe["training"]["distillation"] = {"teacher": "nowhere/to/be/found"}
    _, notes = live_steps(opened, LiveRequest(DataSpec("digits"), 1, device="cpu"))
    assert any("without distillation" in note for note in notes)


def test_live_steps_need_a_training_state_in_its_run(packed_run, ofq_run, tmp_path):
    request = LiveRequest(DataSpec("digits"), 1, device="cpu")
    with pytest.raises(ArtifactError, match="packed codes: contains no optimizer, latent weights and recipe"):
        live_steps(open_source(packed_run), request)
    alone = tmp_path / "alone.pt"
    alone.write_bytes((ofq_run / "last.pt").read_bytes())
    with pytest.raises(ArtifactError, match="is not in its run directory"):
        live_steps(open_source(alone), request)
