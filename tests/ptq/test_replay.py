"""Running a model with its first units given from memory."""

import pytest
import torch

from ofqctl.ptq.replay import Replay
from ofqctl.ptq.units import on_disk

UNITS = ["patch_embed", "blocks.0", "blocks.1", "head"]


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def stored(images):
    with on_disk(images.split(2), torch.device("cpu")) as batches:
        yield batches


@pytest.mark.parametrize("replayed", range(len(UNITS)))
def test_units_that_are_replayed_are_not_computed_and_the_others_are_as_they_are_now(tiny_vit, stored, replayed):
    model = tiny_vit.eval()
    replay = Replay(model, UNITS, stored)
    replay.record(range(2))
    with torch.no_grad():
        for parameter in model.get_submodule(UNITS[replayed]).parameters():
            parameter.mul_(1.5)
        wanted = [model(stored[index]) for index in range(2)]
        for unit in UNITS[:replayed]:
            for parameter in model.get_submodule(unit).parameters():
                parameter.fill_(torch.nan)
    assert all(torch.equal(replay.run(index, replayed), wanted[index]) for index in range(2))


def test_a_model_is_as_it_was_after_a_replay(tiny_vit, stored):
    model = tiny_vit.eval()
    replay = Replay(model, UNITS, stored)
    replay.record(range(1))
    replay.run(0, len(UNITS))
    assert all("forward" not in vars(module) for module in model.modules())
    with torch.no_grad():
        assert torch.equal(replay.run(2), model(stored[2]))


def test_a_second_record_replaces_the_first(tiny_vit, stored):
    model = tiny_vit.eval()
    replay = Replay(model, UNITS, stored)
    replay.record(range(3))
    with torch.no_grad():
        model.head.weight.mul_(2.0)
    replay.record(range(1))
    with torch.no_grad():
        assert torch.equal(replay.run(0, len(UNITS)), model(stored[0]))
