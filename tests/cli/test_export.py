"""Export, and everything that reads what it writes, as a person types it."""

import shutil

import numpy as np
import onnx
import pytest
import timm
from onnx import TensorProto, helper

from ofqctl.cli.app import main

from .conftest import QUICK, TINY, quantize_tiny


@pytest.fixture(scope="session")
def _exported(_made, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "x.onnx"
    assert main(["export", str(_made), "--onnx", "--output", str(path), "--verify-images", "8"]) == 0
    return path


@pytest.fixture
def file(_exported, tmp_path):
    """A file of one's own, exported from the run."""
    return shutil.copy(_exported, tmp_path / "x.onnx").name


def foreign(path, *, opset=20, size=32):
    """A classifier of another program: the mean colour times a matrix."""
    image = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 3, size, size])
    logits = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 10])
    weight = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["scores"]),
    ]
    constants = [onnx.numpy_helper.from_array(np.array([2, 3]), "axes"), onnx.numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "g", [image], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)


def test_export_shows_what_was_verified_and_writes_into_the_run(ofqctl, run):
    ended = ofqctl("export", run, "--onnx", "--verify-data", "digits", "--verify-images", 20)
    assert ended.code == 0
    for words in ("product by product", "codes that differ", "noise floor", "top-1 accuracy", "14 on integers"):
        assert words in ended.out
    assert (run / "model.onnx").is_file()
    assert ofqctl("evaluate", run, "--data", "digits", "--limit", 5).code == 0


def test_a_file_is_evaluated_and_predicts_as_its_run_does(ofqctl, run, file):
    theirs = ofqctl("evaluate", run, "--data", "digits", "--limit", 100, "--json").json
    ours = ofqctl("evaluate", file, "--data", "digits", "--limit", 100, "--json").json
    assert ours["kind"] == "onnx"
    assert ours["images"] == 100
    assert ours["top1"] == pytest.approx(theirs["top1"], abs=2.0)
    assert ours["preprocessing"] == theirs["preprocessing"]
    np.save("a.npy", np.random.default_rng(0).normal(size=(3, 3, 32, 32)))
    result = ofqctl("predict", file, "--array", "a.npy", "--top", 2, "--json").json
    assert [len(image["top"]) for image in result["images"]] == [2, 2, 2]


def test_inspect_tells_the_kernel_of_every_product(ofqctl, file):
    ended = ofqctl("inspect", file)
    assert "blocks.0.mlp.fc1" in ended.out
    assert "MatMulInteger" in ended.out
    result = ofqctl("inspect", file, "--json").json
    assert result["products"]["blocks.0.attn.query_key"]["activations"] == [4, 4]
    assert result["operators"]["MatMulIntegerToFloat"] >= 14


def test_bench_infer_measures_a_file_beside_its_float_model(ofqctl, file):
    against = ("--against", "float", "--batch-size", "1,3")
    result = ofqctl("bench", "infer", file, *against, "--runs", 3, "--json").json
    assert result["files"]["model"]["file_bytes"] < result["files"]["float"]["file_bytes"]
    assert result["ratio"]["float"]["batches"]["3"]["cpu_seconds_median"] > 0
    assert result["files"]["model"]["peak_bytes"] > 0
    shown = ofqctl("bench", "infer", file, *against, "--runs", 2, "--profile", "--data", "digits").out
    for words in ("CPU milliseconds, batch 3", "everything between", "top-1 accuracy"):
        assert words in shown


def test_bench_infer_measures_what_other_programs_make_of_the_float_model(ofqctl):
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **kwargs)
    timm.models.save_for_hf(model, "folder", model_args=kwargs)
    ended = ofqctl("quantize", "local-dir:folder", "--recipe", "ptq/minmax", *QUICK, "--output", "q")
    assert ended.code == 0, ended.err
    peers = ("--against", "float", "--against", "ort-dynamic", "--against", "ort-static")
    ended = ofqctl("bench", "infer", "q", *peers, "--runs", 2, "--json")
    assert ended.code == 0, ended.err
    result = ended.json
    assert set(result["files"]) == {"model", "float", "ort-dynamic", "ort-static"}
    assert all(result["files"][name]["make_cpu_seconds"] > 0 for name in ("ort-dynamic", "ort-static"))
    assert result["notes"] == []


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("--against", "ort-dynamic"), "is not there for other programs"),
        (("--against", "nncf"), "--runtime openvino"),
        (("--runtime", "openvino", "--profile"), "measures ONNX Runtime"),
        (("--batch-size", "1,x"), "expected numbers"),
    ],
)
def test_what_cannot_be_compared_is_told(ofqctl, file, typed, message):
    ended = ofqctl("bench", "infer", file, *typed)
    assert ended.code == 1
    assert message in ended.err


def test_bench_infer_runs_in_openvino(ofqctl, run):
    result = ofqctl("bench", "infer", run, "--against", "float", "--runtime", "openvino", "--runs", 2, "--json").json
    assert result["runtime"].startswith("openvino")
    assert result["ratio"]["float"]["batches"]["1"]["seconds_median"] > 0


def test_the_float_model_is_exported_too(ofqctl):
    ended = ofqctl(
        "export", "vit_tiny_patch16_224", *TINY, "--onnx", "--output", "f.onnx", "--verify-images", 4, "--json"
    )
    assert ended.code == 0
    assert "a float model was written" in ended.err
    assert ended.json["verification"]["end_to_end"]["difference"]["graph"] < 1e-5
    assert ofqctl("evaluate", "f.onnx", "--data", "digits", "--limit", 5).code == 0


def test_safetensors_in_one_file_are_evaluated_like_the_run(ofqctl, run):
    assert ofqctl("export", run, "--safetensors", "--output", "one.safetensors").code == 0
    theirs, ours = (
        ofqctl("evaluate", name, "--data", "digits", "--limit", 20, "--json").json for name in (run, "one.safetensors")
    )
    assert ours["loss"] == theirs["loss"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ((), "none of --onnx, --safetensors"),
        (("--onnx", "--safetensors"), "--onnx and --safetensors of"),
        (("--onnx", "--batch", "0"), "--batch 0"),
        (("--onnx", "--output", "."), "is a folder"),
        (("--onnx", "--output", "taken.onnx"), "already exists"),
        (("--safetensors", "--output", "taken.onnx"), "already exists"),
        (("--safetensors", "--layout", "compressed-tensors"), "cannot represent"),
        (("--onnx", "--verify-data", "nosuch"), "nosuch"),
    ],
)
def test_what_cannot_be_exported_is_told(ofqctl, run, tmp_path, typed, message):
    (tmp_path / "taken.onnx").write_bytes(b"mine")
    ended = ofqctl("export", run, *typed)
    assert ended.code == 1
    assert message in ended.err
    assert (tmp_path / "taken.onnx").read_bytes() == b"mine"
    assert not (run / "model.onnx").exists()


def test_float_weights_are_not_taken_for_a_run(ofqctl, tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    ended = ofqctl("export", "w.pth", "--onnx")
    assert ended.code == 1
    assert "--checkpoint" in ended.err


def test_an_onnx_file_is_not_exported_again(ofqctl, file):
    assert "is already an ONNX file" in ofqctl("export", file, "--onnx").err


@pytest.mark.parametrize("command", [("evaluate", "--data", "digits"), ("inspect",), ("bench", "infer")])
def test_truncated_and_unloadable_files_are_told(ofqctl, file, tmp_path, command):
    (tmp_path / "cut.onnx").write_bytes((tmp_path / file).read_bytes()[:5000])
    foreign("future.onnx", opset=99)
    name, *options = command
    subcommand = [options.pop(0)] if name == "bench" else []
    for broken in ("cut.onnx", "future.onnx"):
        ended = ofqctl(name, *subcommand, broken, *options)
        assert ended.code == 1
        assert ended.err.splitlines()[-2].startswith("error:") or ended.err.splitlines()[-1].startswith("error:")
        assert broken in ended.err


def test_a_foreign_file_needs_its_normalization_by_hand(ofqctl):
    foreign("other.onnx")
    ended = ofqctl("evaluate", "other.onnx", "--data", "digits")
    assert ended.code == 1
    assert "does not say how images are normalized" in ended.err
    assert "--mean" in ended.err
    by_hand = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    ended = ofqctl("evaluate", "other.onnx", "--data", "digits", "--limit", 10, *by_hand, "--json")
    assert ended.code == 0
    assert ended.json["images"] == 10
    assert "does not say how images are preprocessed" in ended.err
    assert "was not written by ofqctl" in ofqctl("inspect", "other.onnx").err


@pytest.mark.parametrize(
    "options", [("--mean", "0.5,0.5,0.5"), ("--mean", "0.5", "--std", "1"), ("--mean", "a,b,c", "--std", "1,1,1")]
)
def test_half_a_normalization_is_refused(ofqctl, options):
    foreign("other.onnx")
    ended = ofqctl("evaluate", "other.onnx", "--data", "digits", *options)
    assert ended.code == 1
    assert "expected three numbers" in ended.err


@pytest.mark.parametrize("std", ["1e-300,1,1", "nan,1,1"])
def test_a_normalization_that_pixels_do_not_survive_is_refused(ofqctl, std):
    foreign("other.onnx")
    ended = ofqctl("evaluate", "other.onnx", "--data", "digits", "--mean", "0.5,0.5,0.5", "--std", std)
    assert ended.code == 1
    assert ended.err.splitlines()[-1].startswith("error: --mean, --std: std.0: ")


def test_an_array_of_another_size_is_refused(ofqctl, file):
    np.save("a.npy", np.zeros((1, 3, 16, 16), np.float32))
    ended = ofqctl("predict", file, "--array", "a.npy")
    assert ended.code == 1
    assert "takes (N, 3, 32, 32)" in ended.err


def test_a_file_with_a_fixed_batch_cannot_be_timed_with_another(ofqctl, run):
    assert ofqctl("export", run, "--onnx", "--batch", 2, "--output", "two.onnx", "--verify-images", 4).code == 0
    assert "takes 2 images at once" in ofqctl("bench", "infer", "two.onnx").err
    assert ofqctl("bench", "infer", "two.onnx", "--batch-size", 2, "--runs", 1).code == 0


def test_a_run_is_quantized_once_and_timed_from_its_folder(ofqctl, run):
    assert quantize_tiny()
    assert ofqctl("bench", "infer", run, "--runs", 1, "--json").json["files"]["model"]["file"] == str(run)
