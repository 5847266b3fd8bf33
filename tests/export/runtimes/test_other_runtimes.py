"""Files run in the oldest ONNX Runtime that they name, and in WebAssembly.

Each runtime is installed on its own, under ``.venv/runtimes``, when a test first needs it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.export import OnnxModel
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.models import ModelRequest

pytestmark = pytest.mark.runtimes

HERE = Path(__file__).parent
INSTALLED = Path(sys.prefix) / "runtimes"


@pytest.fixture(params=["onnxruntime", "portable"])
def target(request):
    return request.param


@pytest.fixture(params=[8, 4, 2])
def file(request, run, target, tmp_path):
    """An exported file, its result, images, and what the newest runtime computes."""
    bits = request.param
    one_step = ("activations.granularity=tensor", "first.activations.granularity=tensor")
    directory = run("ptq/minmax", *one_step, f"weights.bits={bits}", f"activations.bits={bits}")
    path = tmp_path / "x.onnx"
    result = export_onnx(ExportRequest(ModelRequest(str(directory)), target, path, images=8))
    size = load_run(directory).config.input_size
    images = torch.randn(8, *size, generator=torch.Generator().manual_seed(0))
    return path, result, images.numpy(), OnnxModel(path)(images).numpy()


def python_with(version):
    """The interpreter of an environment that has only this version of ONNX Runtime."""
    folder = INSTALLED / f"onnxruntime-{version}"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", f"onnxruntime=={version}.*", "numpy"], check=True)
        (folder / "done").touch()
    return folder / "bin" / "python"


def same(logits, expected):
    """Whether top-1 is the same, and logits are near: a code on a rounding boundary may differ."""
    near = np.abs(logits - expected).max() < 2e-2 * np.abs(expected).max()
    return near and (logits.argmax(1) == expected.argmax(1)).all()


def test_a_file_runs_in_the_oldest_onnx_runtime_that_it_names(file, tmp_path):
    path, result, images, expected = file
    np.save(tmp_path / "images.npy", images)
    python = python_with(result.runtimes["onnxruntime"].oldest)
    logits = tmp_path / "logits.npy"
    subprocess.run([python, HERE / "infer.py", path, tmp_path / "images.npy", logits], check=True)
    assert same(np.load(logits), expected)


def test_a_file_runs_in_webassembly(file, onnxruntime_web, tmp_path):
    path, _, images, expected = file
    (tmp_path / "images.f32").write_bytes(images.tobytes())
    script, logits = shutil.copy(HERE / "infer.mjs", onnxruntime_web.parents[1]), tmp_path / "logits.f32"
    shape = [str(length) for length in images.shape]
    subprocess.run(["node", script, path, tmp_path / "images.f32", logits, *shape], check=True)
    assert same(np.fromfile(logits, np.float32).reshape(expected.shape), expected)
