"""What each target's file is, and what runtimes make of it."""

import subprocess
import sys

import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.errors import ArtifactError, PackageError
from ofqctl.evaluation import of_run
from ofqctl.export import OnnxModel, look_into, write_graph
from ofqctl.export import openvino as in_openvino
from ofqctl.export.runtime import open_session
from ofqctl.jobs.export import ExportRequest, describe, export_onnx
from ofqctl.machine import has_vnni
from ofqctl.models import ModelRequest

from .conftest import images_of

has_vnni_itself = has_vnni()
ONE_STEP = ("ptq/minmax", "activations.granularity=tensor", "first.activations.granularity=tensor")


def exported(directory, path, target, **settings):
    return export_onnx(ExportRequest(ModelRequest(str(directory)), target, path, images=8, **settings))


@pytest.mark.parametrize("bits", [8, 4, pytest.param(2, marks=pytest.mark.slow)])
def test_one_portable_file_has_integer_kernels_in_both_runtimes(run, tmp_path, bits):
    directory = run(*ONE_STEP, f"weights.bits={bits}", f"activations.bits={bits}")
    result = exported(directory, tmp_path / "x.onnx", "portable", strict=True)
    dense = set(load_run(directory).config.quantization_config.plan.modules) - {"blocks.0.attn"}
    assert len(dense) == 6
    kernels = in_openvino.kernels((tmp_path / "x.onnx").read_bytes(), dense)
    assert all(in_openvino.is_integer(kernel) for kernel in kernels.values()), kernels
    assert result.runtimes["onnxruntime"].float == ()


@pytest.mark.parametrize(
    ("bits", "oldest"), [(8, "1.20"), (4, "1.23"), pytest.param(2, "1.24", marks=pytest.mark.slow)]
)
def test_every_product_is_one_operator_of_onnx_runtime(run, tmp_path, bits, oldest):
    directory = run(*ONE_STEP, f"weights.bits={bits}", f"activations.bits={bits}")
    result = exported(directory, tmp_path / "x.onnx", "onnxruntime", strict=True)
    about = result.runtimes["onnxruntime"]
    assert (about.kernels, about.float, about.oldest) == ({"MatMulIntegerToFloat": 8}, (), oldest)
    assert look_into(tmp_path / "x.onnx").runtimes == {"onnxruntime": about.model_dump(mode="json")}


def test_a_file_for_openvino_may_be_its_ir(run, tmp_path):
    directory = run(*ONE_STEP, "weights.bits=7", "first.weights.bits=7", "last.weights.bits=7")
    result = exported(directory, tmp_path / "x.xml", "openvino")
    assert result.verification.end_to_end.agreement["openvino"] == 100.0
    assert result.bytes == sum((tmp_path / name).stat().st_size for name in ("x.xml", "x.bin"))
    images = images_of(directory)
    with torch.inference_mode():
        expected = load_run(directory).model(images)
    logits = torch.from_numpy(in_openvino.core().compile_model(tmp_path / "x.xml", "CPU")([images.numpy()])[0])
    assert torch.allclose(logits, expected, atol=2e-2 * float(expected.abs().max()))


def test_an_ir_that_repeats_the_digest_of_an_onnx_file_is_read(run, tmp_path):
    exported(run(*ONE_STEP), tmp_path / "x.onnx", "portable")
    in_openvino.write_ir((tmp_path / "x.onnx").read_bytes(), tmp_path / "x.xml")
    assert OnnxModel(tmp_path / "x.xml", runtime="openvino").width == OnnxModel(tmp_path / "x.onnx").width


@pytest.mark.parametrize("vnni", [False, True])
def test_what_saturates_on_a_cpu_without_vnni_is_told(run, tmp_path, vnni, monkeypatch):
    monkeypatch.setattr("ofqctl.jobs.export.has_vnni", lambda: vnni)
    if vnni and not has_vnni_itself:
        pytest.skip("this CPU saturates")
    result = exported(run(*ONE_STEP), tmp_path / "x.onnx", "openvino")
    assert result.runtimes["openvino"].vnni
    assert ("openvino" in result.verification.end_to_end.agreement) == vnni
    assert any("7 bits are exact" in note for note in result.notes)


@pytest.mark.parametrize(("flags", "exact"), [("avx2 fma", "1"), ("avx2 avx512_vnni", "0"), ("avx2 avx_vnni", "0")])
def test_products_are_slowed_down_where_they_may_saturate_alone(run, tmp_path, monkeypatch, flags, exact):
    exported(run(*ONE_STEP), tmp_path / "x.onnx", "onnxruntime")
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : fpu {flags}\n")
    monkeypatch.setattr("ofqctl.machine._CPU", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    options = open_session(tmp_path / "x.onnx", 1).get_session_options()
    assert options.get_session_config_entry("session.x64quantprecision") == exact


def test_an_ir_for_another_target_is_refused(run, tmp_path):
    with pytest.raises(ArtifactError, match="IR"):
        exported(run("ptq/minmax"), tmp_path / "x.xml", "portable")


def test_a_missing_package_is_told_before_anything_is_computed(run, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(PackageError) as caught:
        exported(run("ptq/minmax"), tmp_path / "x.onnx", "openvino")
    assert caught.value.hint == "pip install openvino"


def test_layers_in_float_are_told_and_an_error_if_strict(run, tmp_path):
    directory = run("ptq/minmax", "activations.granularity=channel")
    result = exported(directory, tmp_path / "x.onnx", "onnxruntime")
    assert any("onnxruntime computes" in note and "granularity=tensor" in note for note in result.notes)
    with pytest.raises(ArtifactError, match="--strict"):
        exported(directory, tmp_path / "y.onnx", "onnxruntime", strict=True)
    assert not (tmp_path / "y.onnx").exists()


SMALL = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3}
FAMILIES = {
    "vit_tiny_patch16_224": SMALL,
    "deit_small_distilled_patch16_224": SMALL,
    "swin_tiny_patch4_window7_224": {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)},
    "swinv2_tiny_window8_256": {
        "img_size": 64,
        "window_size": 4,
        "embed_dim": 24,
        "depths": (2, 2),
        "num_heads": (2, 4),
    },
    "beit_base_patch16_224": SMALL,
    "eva02_tiny_patch14_224": {"img_size": 28, "embed_dim": 48, "depth": 2, "num_heads": 3},
    "cait_xxs24_224": {"img_size": 32, "embed_dim": 48, "depth": 1, "num_heads": 3},
    "levit_128s": {"img_size": 64},
    "crossvit_tiny_240": {"img_size": 240, "depth": ((1, 1, 0),)},
    "efficientvit_m0": {"img_size": 64, "depth": (1, 1, 1), "num_heads": (2, 2, 2)},
    "pit_ti_224": {"img_size": 64},
    "mvitv2_tiny": {"img_size": 64},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "recipe"),
    [(model, "deploy/w8a8") for model in FAMILIES]
    + [(model, recipe) for model in list(FAMILIES)[:6] for recipe in ("ptq/percentile", "ptq/erq")],
)
def test_openvino_compiles_the_portable_file_of_every_family(run, model, recipe):
    directory = run(recipe, model=model, **FAMILIES[model])
    loaded = load_run(directory)
    graph = write_graph(loaded.model, describe(of_run(loaded), "portable", pixels=False), "portable", 2)
    in_openvino.compiled(graph.serialize())


CHILD_BEHIND_TWO = """
import signal, subprocess, sys
from ofqctl.export import openvino

signal.signal(signal.SIGCHLD, lambda *_: None)  # as PyTorch's loader does where it has workers
models = [openvino.compiled(open(sys.argv[1], "rb").read()) for _ in range(2)]
del models[0]
del models[0]
subprocess.run([sys.executable, "-c", ""], capture_output=True, check=True)
print("still here")
"""


def test_a_process_outlives_its_models_in_openvino(w2a2, tmp_path):
    exported(w2a2, tmp_path / "x.onnx", "portable")
    done = subprocess.run(
        [sys.executable, "-c", CHILD_BEHIND_TWO, tmp_path / "x.onnx"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "still here\n"), done.stderr
