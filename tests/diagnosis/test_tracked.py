"""The tracker's figures against its definition, counted in plain Python."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from ofqctl.diagnosis.opening import open_source
from ofqctl.diagnosis.report import Selection, report_on
from ofqctl.diagnosis.tracked import TrackerState, history_of, tracked_of
from ofqctl.errors import ArtifactError


def test_figures_follow_from_the_state_entry_by_entry(lsq_run):
    opened = open_source(lsq_run)
    state = TrackerState(opened.tracker, 0.005, 3)
    for weight in opened.read_weights():
        found = tracked_of(weight, state)
        rows = weight.encoded.codes.shape[0]
        first, name = weight.part * rows, f"{weight.name}.weight"
        frequency = opened.tracker[f"{name}.frequency"][first : first + rows].flatten(1).tolist()
        direction = opened.tracker[f"{name}.direction"][first : first + rows].flatten().tolist()
        flat = sorted(f for row in frequency for f in row)
        assert found.oscillating == pytest.approx(sum(f > 0.005 for f in flat) / len(flat))
        assert found.never_flipped == pytest.approx(direction.count(0) / len(direction))
        assert found.frequency["1"] == pytest.approx(flat[-1])
        assert found.frequency["0.5"] == pytest.approx(flat[-(-len(flat) // 2) - 1])
        recent = [row[weight.part] for row in opened.tracker[f"{name}.recent_flips"].tolist()]
        assert found.flips_per_step == pytest.approx(sum(recent) / len(recent) / len(flat))
        start, now = (opened.tracker[f"{name}.{key}"][first : first + rows].flatten() for key in ("start", "codes"))
        assert found.moved == pytest.approx((start != now).double().mean().item())
        assert found.signs_moved == pytest.approx((start.sign() != now.sign()).double().mean().item())
        assert found.magnitudes_moved == pytest.approx((start.int().abs() != now.int().abs()).double().mean().item())
        means = {index: sum(row) / len(row) for index, row in enumerate(frequency)}
        best = sorted(means.values(), reverse=True)[:3]
        assert [channel.frequency for channel in found.channels] == pytest.approx([m for m in best if m], rel=1e-5)
        for channel in found.channels:
            row = frequency[channel.index]
            assert channel.oscillating == pytest.approx(sum(f > 0.005 for f in row) / len(row))


def test_codes_that_moved_are_in_the_report_and_in_each_epoch_and_null_without_a_start(lsq_run):
    opened = open_source(lsq_run)
    report, _ = report_on(opened, Selection())
    assert report.total.moved == pytest.approx(report.epochs[-1].moved)
    assert report.total.signs_moved == pytest.approx(report.epochs[-1].signs_moved)
    assert report.total.moved > report.epochs[0].moved > 0
    opened.tracker = {key: tensor for key, tensor in opened.tracker.items() if not key.endswith(".start")}
    report, _ = report_on(opened, Selection())
    assert report.total.moved is report.layers[0].tracked.moved is None


def test_the_history_of_a_role_is_the_mean_over_its_weights(lsq_run):
    opened = open_source(lsq_run)
    weights = list(opened.read_weights())
    state = TrackerState(opened.tracker, 0.005, 3)
    history = history_of(weights, state)
    assert history.steps == tuple(range(1, 67))
    key = [weight for weight in weights if weight.role == "k"]
    now = [tracked_of(weight, state) for weight in key]
    assert history.roles["k"].oscillating[-1] == pytest.approx(sum(one.oscillating for one in now) / len(now))
    flips = sum(opened.tracker[f"{weight.name}.weight.flips"][1].item() for weight in key)
    counted = sum(history.roles["k"].flips_per_step) * sum(weight.encoded.codes.numel() for weight in key)
    assert counted == pytest.approx(flips)
    assert history.roles["k"].step[0] == 1.0


def test_flips_that_were_counted_together_are_shared_by_the_parts(lsq_run):
    opened = open_source(lsq_run)
    tensors = copy.copy(opened.tracker)
    name = "blocks.0.attn.qkv.weight"
    tensors[f"{name}.flips"] = tensors[f"{name}.flips"].sum()
    tensors[f"{name}.recent_flips"] = tensors[f"{name}.recent_flips"].sum(1)
    parts = [weight for weight in opened.read_weights() if weight.name == "blocks.0.attn.qkv"]
    apart = [tracked_of(weight, TrackerState(opened.tracker, 0.005, 3)).flips_per_step for weight in parts]
    together = [tracked_of(weight, TrackerState(tensors, 0.005, 3)).flips_per_step for weight in parts]
    assert together == pytest.approx([sum(apart) / 3] * 3)


def test_a_report_holds_sampled_trajectories_that_flipped(ofq_run):
    report, _ = report_on(open_source(ofq_run), Selection(top=4))
    assert 0 < len(report.paths) <= 4
    for path in report.paths:
        assert len(path.position) == len(path.code) == 66
        assert path.first_step == 1
        assert any(a != b for a, b in zip(path.code, path.code[1:], strict=False))
        for position, code in zip(path.position, path.code, strict=True):
            low = code == min(path.code) and code == -2
            high = code == 1
            assert low or position >= code - 0.5 - 1e-4
            assert high or position <= code + 0.5 + 1e-4


def test_the_file_beside_the_run_and_the_training_state_say_the_same(ofq_run):
    by_run, _ = report_on(open_source(ofq_run), Selection())
    by_file, _ = report_on(open_source(ofq_run / "oscillation.safetensors"), Selection())
    assert by_file.model_copy(update={"path": by_run.path}) == by_run
    saved = load_file(ofq_run / "oscillation.safetensors")
    assert int(saved["steps"]) == by_run.steps == 66


def test_a_state_of_another_model_is_refused(lsq_run, ofq_run):
    opened = open_source(lsq_run)
    opened.tracker = open_source(ofq_run).tracker
    with pytest.raises(ArtifactError, match=r"tracker state: blocks\.0\.attn\.qkv\.weight\.\w+ is missing"):
        report_on(opened, Selection())
    opened = open_source(lsq_run)
    opened.tracker = {
        key: tensor[:, :20].clone() if key == "head.weight.frequency" else tensor
        for key, tensor in opened.tracker.items()
    }
    with pytest.raises(ArtifactError, match=r"head: \(10, 20\), but \(10, 48\) in the model"):
        report_on(opened, Selection())


def test_totals_are_means_over_all_weights(ofq_run):
    report, _ = report_on(open_source(ofq_run), Selection())
    weights = sum(layer.weights for layer in report.layers)
    assert report.total.weights == weights
    expected = sum(layer.tracked.oscillating * layer.weights for layer in report.layers) / weights
    assert report.total.oscillating == pytest.approx(expected)
    assert report.total.within["0.005"] == pytest.approx(
        sum(layer.latents.within["0.005"] * layer.weights for layer in report.layers) / weights
    )
    assert {layer.role for layer in report.layers} == set(report.roles)
    assert torch.tensor([s.weights for s in report.roles.values()]).sum() == weights
