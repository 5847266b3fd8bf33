"""How many threads torch computes with."""

import os

import pytest
import timm
import torch
from torch import nn

from ofqctl.devices import suited_threads


@pytest.fixture(autouse=True)
def _two_threads(monkeypatch):
    before = torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def threads_within(*models):
    with suited_threads(*models):
        return torch.get_num_threads()


def test_a_small_model_computes_with_one_thread_within_the_block_only(tiny_vit):
    assert threads_within(tiny_vit) == 1
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_is_restored_after_an_error(tiny_vit):
    with pytest.raises(ZeroDivisionError), suited_threads(tiny_vit):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2


def test_the_smallest_pretrained_vit_computes_with_all_threads(tiny_vit):
    vit = timm.create_model("vit_tiny_patch16_224")
    assert threads_within(vit) == 2
    assert threads_within(tiny_vit, vit) == 2


def test_codes_of_a_run_read_from_disk_count_as_weights():
    run = nn.Module()
    run.register_buffer("codes", torch.zeros(2_000_000, dtype=torch.uint8))
    assert threads_within(run) == 2


def test_a_model_whose_weights_torch_does_not_hold_changes_nothing():
    assert threads_within(nn.Module()) == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_of_threads_that_the_user_set_is_obeyed(monkeypatch, tiny_vit, name):
    monkeypatch.setitem(os.environ, name, "2")
    assert threads_within(tiny_vit) == 2
