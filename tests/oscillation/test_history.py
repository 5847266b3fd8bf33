"""The history is a table of bounded size whose rows follow from the number of steps."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ofqctl.errors import ArtifactError
from ofqctl.layers import weight_sites
from ofqctl.oscillation import OscillationTracker, history
from ofqctl.oscillation.history import HistoryTable
from ofqctl.oscillation.roles import roles_of


def recorded(steps, start=0):
    table = HistoryTable()
    for step in range(start + 1, start + steps + 1):
        if table.due(step):
            table.add(step, torch.tensor([[float(step)]]))
    return table


@given(st.integers(0, 3000))
def test_rows_are_evenly_spaced_bounded_and_never_far_behind(steps):
    table = recorded(steps)
    assert len(table.steps) <= history.ROWS
    gaps = {b - a for a, b in zip(table.steps, table.steps[1:], strict=False)}
    assert len(gaps) <= 1
    if steps:
        stride = gaps.pop() if gaps else 1
        assert stride & (stride - 1) == 0
        assert steps - table.steps[-1] < stride
        assert table.steps[0] in (1, stride)
    assert [float(row) for row in table.rows] == table.steps


@given(st.integers(0, 1500), st.integers(0, 1500))
def test_a_table_that_was_saved_and_read_goes_on_as_one_that_was_not(before, after):
    whole, part = recorded(before + after), HistoryTable()
    part.restore(recorded(before).state())
    for step in range(before + 1, before + after + 1):
        if part.due(step):
            part.add(step, torch.tensor([[float(step)]]))
    assert part.steps == whole.steps
    assert torch.equal(part.state()["history"], whole.state()["history"])


def test_a_tracker_that_began_without_one_records_from_where_it_is(quantized):
    tracker = OscillationTracker(quantized("lsq"))
    old = {key: tensor for key, tensor in tracker.state_dict().items() if not key.startswith("history")}
    tracker.load_state_dict(old)
    tracker.update()
    assert tracker.history.steps == [1]


def test_a_row_has_the_mean_step_the_oscillating_share_and_the_flips_of_every_part(quantized):
    model = quantized("lsq")
    tracker = OscillationTracker(model, momentum=0.5, threshold=0.2)
    sites = dict(sorted(weight_sites(model)))
    seen = {name: [site.encode_weight().codes.clone()] for name, site in sites.items()}
    torch.manual_seed(0)
    for step in range(5):
        with torch.no_grad():
            for site in sites.values():
                site.weight.add_(torch.randn_like(site.weight) * site.weight.std(), alpha=0.5 * (-1) ** step)
        tracker.update()
        for name, site in sites.items():
            seen[name].append(site.encode_weight().codes.clone())
    state = tracker.state_dict()
    expected = []
    for name, site in sites.items():
        parts = len(roles_of(name.removesuffix(".weight"), site.weight.shape[0]))
        flips = sum((a != b).int() for a, b in zip(seen[name], seen[name][1:], strict=False))
        steps = site.encode_weight().step.expand(site.weight.shape[0], *site.weight.shape[1:])
        for part in range(parts):
            rows = slice(part * len(flips) // parts, (part + 1) * len(flips) // parts)
            frequency = tracker.frequencies(name)[rows]
            share = (frequency > 0.2).double().mean().item()
            expected.append([steps[rows].double().mean().item(), share, flips[rows].sum().item()])
            assert state[f"{name}.flips"][part] == flips[rows].sum()
    assert state["history_steps"].tolist() == [1, 2, 3, 4, 5]
    for found, row in zip(state["history"][-1].tolist(), expected, strict=True):
        assert found == pytest.approx(row, rel=1e-5)
    assert any(len(roles_of(name.removesuffix(".weight"), 144)) == 3 for name in sites)


@pytest.mark.parametrize(
    ("module", "rows", "roles"),
    [
        ("blocks.0.attn.qkv", 144, ("q", "k", "v")),
        ("layers.1.blocks.0.attn.qkv", 144, ("q", "k", "v")),
        ("blocks.0.attn.products.qk", 3, ("qk",)),
        ("blocks.0.attn.products.v_proj", 48, ("v",)),
        ("blocks.0.attn.proj", 48, ("proj",)),
        ("blocks.0.mlp.fc1", 192, ("fc1",)),
        ("blocks.0.mlp.fc2", 48, ("fc2",)),
        ("stages.0.attn.kv", 96, ("k", "v")),
        ("patch_embed.proj", 48, ("patch",)),
        ("head", 10, ("head",)),
        ("head_dist", 10, ("head",)),
        ("head.fc", 10, ("head",)),
        ("layers.0.downsample.reduction", 96, ("other",)),
        ("blocks.0.attn.qkv", 100, ("other",)),
    ],
)
def test_roles_follow_from_names(module, rows, roles):
    assert roles_of(module, rows) == roles


@pytest.mark.parametrize("steps", [[True, True], [1, 2, 4], [2, 1], [0, 1], [1]])
def test_a_table_whose_steps_were_changed_is_refused(steps):
    state = recorded(2).state() | {"history_steps": torch.tensor(steps)}
    with pytest.raises(ArtifactError, match="not evenly spaced"):
        HistoryTable().restore(state)
