"""Outputs of commands: refused before the work, written where links lead, and never in place of what others wrote."""

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from .conftest import QUICK, TINY, quantize_tiny

ONNX = ("--onnx", "--verify-images", 1, "--overwrite")


def test_a_float_model_is_not_replaced_by_the_run_that_is_made_from_it(ofqctl, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 10}))
    (tmp_path / "m" / "thesis.txt").write_text("mine")
    ended = ofqctl("quantize", "local-dir:m", "--recipe", "ptq/minmax", "--output", "m", "--overwrite")
    assert ended.code == 1
    assert "not a run directory of ofqctl" in ended.err
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["config.json", "thesis.txt"]


def test_a_run_at_32_bits_is_not_replaced_by_the_run_that_is_made_from_it(ofqctl):
    all_float = [f"{part}{kind}.bits=32" for part in ("", "first.", "last.") for kind in ("weights", "activations")]
    assert ofqctl(*quantize_tiny("--set", *all_float, "--output", "float")).code == 0
    ended = ofqctl("quantize", "float", "--wbits", 4, "--abits", 4, *QUICK, "--output", "float", "--overwrite")
    assert ended.code == 1
    assert "starts from this run and cannot replace it" in ended.err


def test_replacing_a_run_keeps_what_others_wrote_and_drops_the_state_of_an_earlier_training(ofqctl, run):
    for name in ("thesis.txt", "last.pt", "summary.csv"):
        (run / name).write_text("earlier")
    assert ofqctl(*quantize_tiny("--output", run, "--overwrite")).code == 0
    names = {"config.json", "model.safetensors", "recipe.yaml", "results.json", "thesis.txt"}
    assert {path.name for path in run.iterdir()} == names


def test_the_working_directory_and_a_linked_one_take_a_run(ofqctl, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    assert ofqctl(*quantize_tiny("--output", "link")).code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "config.json").is_file()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert ofqctl(*quantize_tiny("--output", ".")).code == 0
    assert Path("config.json").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("compare", "RUN", "RUN", "--html"),
        ("predict", "RUN", "--array", "x.npy", "--save-logits"),
        ("sensitivity", "vit_tiny_patch16_224", *TINY, "--plot"),
    ],
    ids=["html", "logits", "plot"],
)
@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("nowhere/out.svg", "No such file or directory"),
        (f"{'x' * 260}.svg", "File name too long"),
        ("folder.svg", "it is a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_before_the_work(ofqctl, run, command, output, told):
    np.save("x.npy", np.zeros((1, 3, 32, 32), np.float32))
    Path("folder.svg").mkdir()
    ended = ofqctl(*[run if word == "RUN" else word for word in command], output)
    assert ended.code == 1
    assert "cannot be written" in ended.err and told in ended.err
    assert "load the model" not in ended.err and "read" not in ended.err


def test_a_page_on_a_full_device_is_an_error_and_the_device_stays(ofqctl, run):
    ended = ofqctl("compare", run, run, "--html", "/dev/full")
    assert ended.code == 1
    assert "No space left on device" in ended.err
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_no_output_replaces_a_file_of_a_run_or_one_that_is_read(ofqctl, run):
    before = (run / "results.json").read_text()
    assert "a file of the run" in ofqctl("compare", run, run, "--html", run / "results.json").err
    assert (run / "results.json").read_text() == before
    np.save("x.npy", np.zeros((1, 3, 32, 32), np.float32))
    ended = ofqctl("predict", run, "--array", "x.npy", "--save-logits", "x.npy")
    assert ended.code == 1 and "is read by this command" in ended.err
    ended = ofqctl("export", run, *ONNX, "--output", run / "model.safetensors")
    assert ended.code == 1 and "a file of the run" in ended.err


def test_an_exported_folder_is_replaced_and_one_of_another_program_is_not(ofqctl):
    float_activations = [f"{part}activations.bits=32" for part in ("", "first.", "last.")]
    sets = ("--set", "weights.granularity=channel", *float_activations)
    assert ofqctl(*quantize_tiny("--output", "weights", *sets)).code == 0
    export = ("export", "weights", "--safetensors", "--layout", "compressed-tensors", "--output", "packed")
    for arguments in (export, (*export, "--overwrite")):
        ended = ofqctl(*arguments)
        assert ended.code == 0, ended.err
    Path("packed/config.json").write_text('{"quantization_config": {"quant_method": "compressed-tensors"}}')
    assert ofqctl(*export, "--overwrite").code == 1


def test_the_weights_beside_an_intermediate_representation_are_not_replaced_unasked(ofqctl, run, tmp_path):
    pytest.importorskip("openvino")
    (tmp_path / "x.bin").write_text("mine")
    ended = ofqctl("export", run, "--onnx", "--target", "openvino", "--output", "x.xml")
    assert ended.code == 1
    assert "x.bin: already exists" in ended.err


def test_an_exported_file_of_earlier_weights_is_told(ofqctl, run):
    assert ofqctl("export", run, *ONNX).code == 0
    evaluate = ("evaluate", run / "model.onnx", "--data", "digits", "--limit", 5, "--json")
    assert not any("other weights" in note for note in ofqctl(*evaluate).json["notes"])
    assert ofqctl(*quantize_tiny("--seed", 5, "--output", run, "--overwrite")).code == 0
    [note] = [note for note in ofqctl(*evaluate).json["notes"] if "other weights" in note]
    assert f"ofqctl export {run} --onnx --target onnxruntime --output {run / 'model.onnx'} --overwrite" in note


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/tmp/batch-0.pt"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_of_temporary_files_is_no_bug(ofqctl, monkeypatch, failure):
    def full(*_args, **_kwargs):
        raise failure

    monkeypatch.setattr("ofqctl.jobs.quantize.calibration_images", full)
    ended = ofqctl(*quantize_tiny("--output", "a"))
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: a file cannot be read or written: ")
    assert "Traceback" not in ended.err
    assert not Path("a").exists()
