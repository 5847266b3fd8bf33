"""Codes changed from checkpoint to checkpoint, counted one by one; different models are told apart."""

import pytest
import torch

from ofqctl.diagnosis.between import change_between, snapshot_of
from ofqctl.diagnosis.opening import open_source
from ofqctl.diagnosis.report import Selection, report_on
from ofqctl.errors import ArtifactError


def moved(run, seed=0):
    """The snapshot of a run, and of the same with some weights moved."""
    opened = open_source(run)
    before = snapshot_of(list(opened.read_weights()))
    model = {key: tensor.clone() for key, tensor in opened.checkpoint.model.items()}
    random = torch.Generator().manual_seed(seed)
    for tensor in model.values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.add_(torch.randn(tensor.shape, generator=random) * tensor.std() * 0.1)
    opened.checkpoint.model.update(model)
    return before, snapshot_of(list(opened.read_weights()))


@pytest.mark.parametrize("name", ["lsq_run", "ofq_run"])
def test_changes_are_those_of_a_plain_loop(request, name):
    before, after = moved(request.getfixturevalue(name))
    change = change_between(before, after, ("a", "b"), None)
    total = weights = 0
    for layer in change.layers:
        pairs = [snap[layer.name, layer.role] for snap in (before, after)]
        codes = [pair.codes.flatten().tolist() for pair in pairs]
        distances = [abs(a - b) for a, b in zip(*codes, strict=True) if a != b]
        assert layer.codes_changed == len(distances) / len(codes[0])
        assert layer.distance == pytest.approx(sum(distances) / len(distances) if distances else 0.0)
        drift = sorted(b / a - 1 for a, b in zip(*(pair.step.flatten().tolist() for pair in pairs), strict=True))
        assert layer.step_drift["0.5"] == pytest.approx(drift[-(-len(drift) // 2) - 1], abs=1e-6)
        total, weights = total + len(distances), weights + len(codes[0])
    assert change.codes_changed == pytest.approx(total / weights)
    assert total > 0


def test_the_trend_compares_with_the_pair_before(lsq_run):
    before, after = moved(lsq_run)
    first = change_between(before, after, ("a", "b"), None)
    assert first.trend is None
    assert change_between(after, after, ("b", "c"), first).trend == "less"
    assert change_between(after, before, ("b", "c"), first).trend == "equal"
    none = change_between(after, after, ("b", "c"), None)
    assert change_between(before, after, ("c", "d"), none).trend == "more"


def test_checkpoints_of_different_models_are_told_apart(lsq_run, ofq_run):
    (_, one), (_, other) = (report_on(open_source(run), Selection()) for run in (lsq_run, ofq_run))
    with pytest.raises(ArtifactError, match="belong to different models") as error:
        change_between(one, other, ("one", "other"), None)
    assert "blocks.0.attn.qkv [q]: only in one" in error.value.message
    key = ("blocks.0.mlp.fc1", "fc1")
    with pytest.raises(
        ArtifactError, match=r"fc1 \[fc1\]: \(192, 48\), lsq -2\.\.1 in a, \(192, 48\), statsq -2\.\.1 in b"
    ):
        change_between({key: one[key]}, {key: other[key]}, ("a", "b"), None)
