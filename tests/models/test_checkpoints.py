import argparse
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ofqctl.errors import ModelError
from ofqctl.models import read_checkpoint, read_torch_file

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.zeros(2)}


class RunsCode:
    """Pickles to a call that would leave a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_plain_state_dict_comes_back(tmp_path, suffix, legacy):
    path = tmp_path / f"weights{suffix}"
    torch.save(STATE, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_checkpoint(path), STATE)


def test_a_safetensors_file_comes_back(tmp_path):
    save_file(STATE, tmp_path / "weights.safetensors")
    assert same(read_checkpoint(tmp_path / "weights.safetensors"), STATE)


@pytest.mark.parametrize("key", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_a_training_checkpoint_gives_its_state_dict_and_its_rest(tmp_path, key):
    path = tmp_path / "last.pth.tar"
    torch.save({"epoch": 3, "arch": "vit", "args": argparse.Namespace(lr=0.1), key: STATE}, path)
    assert same(read_checkpoint(path), STATE)
    assert read_torch_file(path)["epoch"] == 3


def test_averaged_weights_come_first(tmp_path):
    averaged = {key: value + 1 for key, value in STATE.items()}
    torch.save({"state_dict": STATE, "state_dict_ema": averaged}, tmp_path / "last.pt")
    notes = []
    assert same(read_checkpoint(tmp_path / "last.pt", notes), averaged)
    assert notes == [f"{tmp_path / 'last.pt'}: the averaged weights 'state_dict_ema' were taken, not 'state_dict'"]


def test_wrapper_prefixes_are_removed(tmp_path):
    torch.save({f"module.{key}": value for key, value in STATE.items()}, tmp_path / "last.pt")
    assert same(read_checkpoint(tmp_path / "last.pt"), STATE)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path, kind):
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"state_dict": STATE, "extra": RunsCode(trace)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"extra": RunsCode(trace)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ModelError, match="refused") as caught:
        read_checkpoint(path)
    assert caught.value.hint
    assert not trace.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_truncated_torch_file_is_named(tmp_path, legacy):
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ModelError, match=r"weights\.pt.*truncated.*1500 bytes"):
        read_checkpoint(path)


def test_a_truncated_safetensors_file_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="not a safetensors file, or truncated"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"\x00" * 64, b"PK\x03\x04 not a zip"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_foreign_file_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({}, "it is empty"),
        ({"epoch": 3}, "epoch is not a tensor"),
        ({"model": {"a": 1}}, "a is not a tensor"),
        (torch.ones(3), "contains a Tensor"),
    ],
)
def test_a_file_without_state_dict_says_what_it_holds(tmp_path, content, complaint):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=complaint):
        read_checkpoint(tmp_path / "weights.pt")


def test_a_missing_file_a_directory_and_an_unknown_kind_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        read_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="is a directory") as caught:
        read_torch_file(tmp_path)
    assert "local-dir:" in caught.value.hint
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ModelError, match=r"unknown kind '\.onnx'; allowed: \.safetensors"):
        read_checkpoint(tmp_path / "model.onnx")


def test_a_checkpoint_of_lightning_is_read_without_its_prefix(tmp_path):
    content = {"state_dict": {f"model.{key}": value for key, value in STATE.items()}, "hyper_parameters": {"lr": 0.1}}
    for name in ("last.ckpt", "last.pth"):
        torch.save(content | {"pytorch-lightning_version": "2.0"}, tmp_path / name)
        assert same(read_checkpoint(tmp_path / name), STATE)


def test_a_prefix_that_only_some_names_have_stays(tmp_path):
    mixed = {"model.weight": torch.ones(1), "other.weight": torch.ones(1)}
    torch.save(mixed, tmp_path / "last.pt")
    assert same(read_checkpoint(tmp_path / "last.pt"), mixed)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {}, "model_ema": {"module": STATE}},
        {"model": {"a": torch.ones(1)}, "ema": {"decay": 0.9, "state_dict": STATE}},
        {"state_dict": {"model": STATE}, "ema": {"decay": 0.9}},
        {"net": STATE},
        {"module": {"state_dict": {f"module.{key}": value for key, value in STATE.items()}}},
    ],
    ids=["ema in module", "ema beside its decay", "ema without weights", "net", "twice"],
)
def test_nested_state_dicts_are_found(tmp_path, content):
    torch.save(content, tmp_path / "last.pt")
    assert same(read_checkpoint(tmp_path / "last.pt"), STATE)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_numbers_of_numpy_and_paths_beside_the_weights_are_read(tmp_path, legacy):
    content = {"best": np.float64(81.25), "epoch": np.int32(3), "ok": np.bool_(True), "name": np.str_("vit")}
    settings = argparse.Namespace(output=tmp_path, acc=np.float32(0.5))
    path = tmp_path / "last.pth"
    torch.save({"model": STATE, **content, "args": settings}, path, _use_new_zipfile_serialization=not legacy)
    assert same(read_checkpoint(path), STATE)
    read = read_torch_file(path)
    assert {key: read[key] for key in content} == content
    assert read["args"].acc == 0.5
    assert str(read["args"].output) == str(tmp_path)


def test_an_object_of_numpy_is_refused(tmp_path):
    array = np.array([RunsCode(tmp_path / "trace")], dtype=object)
    torch.save({"model": STATE, "extra": array}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="refused"):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "trace").exists()
