"""A page for browsers, as a person asks for it; tests/export/web looks at it in one."""

import json

import pytest

QUICK = ("--verify-images", 4)


def package(folder, version="1.30.0"):
    """Something with the files of the npm package onnxruntime-web."""
    files = folder / "dist"
    files.mkdir(parents=True)
    (files / "ort.wasm.min.mjs").write_text(f"/*!\n * ONNX Runtime Web v{version}\n */\n")
    (files / "ort-wasm-simd-threaded.mjs").write_text("export default 0;\n")
    (files / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm")
    return folder


def test_a_page_has_the_model_its_preprocessing_and_the_names_of_its_classes(ofqctl, run, tmp_path):
    runtime = package(tmp_path / "onnxruntime-web")
    result = ofqctl("export", run, "--web", "site", "--ort-web", runtime, *QUICK, "--json").json
    names = {path.name for path in (tmp_path / "site").iterdir()}
    assert names == set(result["page"]["files"])
    assert names >= {"index.html", "page.js", "preprocess.js", "page.css", "model.onnx", "model.json"}
    about = json.loads((tmp_path / "site" / "model.json").read_text())
    assert about["labels"] == [f"class {label}" for label in range(10)]
    assert about["preprocessing"]["input_size"] == [3, 32, 32]
    assert about["bytes"] == (tmp_path / "site" / "model.onnx").stat().st_size
    assert about["runtime"] == {"folder": "./", "version": "1.30.0", "oldest": "1.23"}
    assert ofqctl("evaluate", "site/model.onnx", "--data", "digits", "--limit", 5).code == 0

    # One that loads the runtime from the network takes its place, and no file of the runtime is left.
    assert "already exists" in ofqctl("export", run, "--web", "site", *QUICK).err
    ended = ofqctl("export", run, "--web", "site", "--overwrite", *QUICK)
    assert "from the network" in ended.out
    assert "python -m http.server --directory site" in ended.out
    assert not list((tmp_path / "site").glob("ort*"))
    about = json.loads((tmp_path / "site" / "model.json").read_text())
    assert about["runtime"]["folder"].startswith("https://")


def test_a_model_that_the_runtime_is_too_old_for_is_refused(ofqctl, run, tmp_path):
    runtime = package(tmp_path / "old", "1.20.1")
    ended = ofqctl("export", run, "--web", "site", "--ort-web", runtime, *QUICK)
    assert ended.code == 1
    assert "onnxruntime-web 1.20.1 cannot load this model, which needs 1.23 or newer" in ended.err
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("--web", "site", "--onnx"), "--onnx and --web of"),
        (("--onnx", "--ort-web", "x"), "--ort-web is for the page of --web"),
        (("--web", "site", "--ort-web", "empty"), "ort.wasm.min.mjs is missing"),
        (("--web", "site", "--batch", "4"), "--batch does not go with --web"),
        (("--web", "site", "--output", "x.onnx"), "--output does not go with --web"),
        (("--web", "site", "--target", "openvino"), "--target openvino does not go with --web"),
        (("--web", "mine", "--overwrite"), "not a page of ofqctl"),
        (("--web", "run", "--overwrite"), "not a page of ofqctl"),
    ],
)
def test_a_page_that_cannot_be_written_is_told(ofqctl, run, tmp_path, typed, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    ended = ofqctl("export", "run", *typed)
    assert ended.code == 1
    assert message in ended.err
    assert not (tmp_path / "site").exists()
    assert (tmp_path / "mine" / "index.html").read_text() == "mine"
