"""Scripts that measure other programs: figures by the names that studies know, nothing else on stdout."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import timm

import ofqctl

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "studies" / "peers"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*_rows.py"))
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
FIGURES = {"top1", "top5", "loss", "bytes", "speed_1", "speed_8", "ms_1", "ms_8", "make_seconds"}
IN_TORCH = {"speed_torch_1", "speed_torch_8"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a tiny ViT of 10 classes in timm's layout."""
    path = tmp_path_factory.mktemp("model")
    timm.models.save_for_hf(timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY), path, model_args=TINY)
    ofqctl.export(f"local-dir:{path}", path / "float.onnx")
    return path


@pytest.fixture
def script(folder, monkeypatch, capfd):
    """Runs a script as Python does, in this process; gives its exit code, stdout and stderr."""
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(ofqctl, "export", lambda _, path: shutil.copy(folder / "float.onnx", path))  # takes seconds

    def run(name, *words):
        path = FOLDER / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
        spec = importlib.util.spec_from_file_location("__main__", path)
        code = 0
        try:
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except SystemExit as ended:
            code = ended.code
        return code, *capfd.readouterr()

    yield run
    sys.modules.pop("common", None)


def words(folder, *more):
    images = ("--calib-data", "digits", "--calib-images", 8, "--data", "digits", "--limit", 16)
    return ("--model", f"local-dir:{folder}", *images, *more)


def figures_of(ended):
    code, out, err = ended
    assert code == 0, err
    document = json.loads(out)
    assert set(document) == {"figures", "versions"} and all(document["versions"].values())
    assert all(isinstance(figure, int | float) for figure in document["figures"].values())
    return document["figures"]


@pytest.mark.parametrize("variant", ["dynamic", "static-percentile", "static-minmax"])
def test_onnxruntime_gives_one_document_and_a_row_for_each_image(script, folder, tmp_path, variant):
    rows = tmp_path / "rows.csv"
    figures = figures_of(script("onnxruntime_rows", variant, *words(folder, "--predictions", rows)))
    assert set(figures) == FIGURES
    header, *lines = rows.read_text().splitlines()
    assert header == "image,label,predicted,right,loss"
    assert len(lines) == 16
    assert figures["top1"] == pytest.approx(100 * sum(line.split(",")[3] == "1" for line in lines) / 16, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "variant", "package"),
    [
        ("torch_rows", "dynamic", "torch"),
        ("quanto_rows", "int8", "optimum.quanto"),
        ("quanto_rows", "int4-weights", "optimum.quanto"),
        ("nncf_rows", "transformer", "nncf"),
        pytest.param("torchao_rows", "int8-weights", "torchao", marks=pytest.mark.slow),
        pytest.param("torchao_rows", "pt2e-static", "torchao", marks=pytest.mark.slow),
    ],
)
def test_programs_give_the_same_figures(script, folder, name, variant, package):
    pytest.importorskip(package, reason=f"the package {package} is not installed")
    figures = figures_of(script(name, variant, *words(folder)))
    assert set(figures) == (FIGURES if name == "nncf_rows" else FIGURES | IN_TORCH)
    told = ofqctl.evaluate(f"local-dir:{folder}", "digits", limit=16)
    assert figures["loss"] == pytest.approx(told.loss, rel=0.02)


@pytest.mark.parametrize(
    ("name", "package", "modules"),
    [
        ("nncf_rows", "nncf", ["nncf"]),
        ("torchao_rows", "torchao", ["torchao"]),
        ("quanto_rows", "optimum-quanto", ["optimum"]),
    ],
)
def test_a_missing_package_ends_with_one_line(script, monkeypatch, name, package, modules):
    for module in [*modules, *(loaded for loaded in sys.modules if loaded.split(".")[0] in modules)]:
        monkeypatch.setitem(sys.modules, module, None)
    code, out, err = script(name, "any")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1 and f"{name}.py: needs the package {package}" in err


def test_what_a_program_cannot_do_ends_with_one_line(script, folder, monkeypatch):
    from ofqctl.export import peers

    def fails(*_):
        print("what a library prints")
        raise ValueError("no kernel\nfor this CPU")

    monkeypatch.setattr(peers, "ort_dynamic", fails)
    code, out, err = script("onnxruntime_rows", "dynamic", *words(folder))
    assert (code, out) == (1, "")
    assert err.endswith("onnxruntime_rows.py: dynamic: ValueError: no kernel for this CPU\n")


@pytest.mark.parametrize("name", [*SCRIPTS, "common"])
def test_no_script_hides_a_package(name):
    assert importlib.util.find_spec(name) is None
