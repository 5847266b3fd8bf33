"""The package that docs/extending.md writes, installed beside ofqctl: nothing of ofqctl knows about it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
TINY = ["--no-pretrained", "--num-classes", "10", "--model-kwargs", "img_size=32", "patch_size=8", "embed_dim=48"]
TINY += ["depth=2", "num_heads=3"]
ONE_STEP = [
    "training.steps_per_epoch=2",
    "training.phases=[{epochs: 1, anchor: {weight: 0.05}}]",
    "training.batch_size=16",
]


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """A folder with the package as pip would install it: its modules, and the entry point in its metadata."""
    root = tmp_path_factory.mktemp("site")
    package = root / "my_methods"
    package.mkdir()
    for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S):
        (package / re.match(r'"""my_methods/(\w+\.py)', block)[1]).write_text(block)
    (package / "__init__.py").write_text(
        "".join(f"from my_methods import {p.stem}\n" for p in sorted(package.glob("*.py")))
    )
    info = root / "my_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-methods\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ofqctl.methods]\nmy_methods = my_methods\n")
    return root


@pytest.fixture
def ofqctl(site, tmp_path):
    """Runs the program in a process of its own that has the package."""

    def run(*arguments, fails=False):
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *sys.path]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "ofqctl", *map(str, arguments)]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (ended.returncode != 0) == fails, ended.stderr
        return ended.stderr if fails else ended.stdout

    return run


def test_recipes_check_the_settings_of_a_foreign_method(ofqctl):
    recipe = ["recipe", "check", "ptq/mse", "--set", "weights.method=powers"]
    ofqctl(*recipe, "weights.share=0.5")
    assert "weights.shore: unknown key; did you mean 'share'?" in ofqctl(*recipe, "weights.shore=0.5", fails=True)


@pytest.mark.slow
def test_a_foreign_quantizer_and_stage_go_all_the_way(ofqctl, tmp_path):
    made = json.loads(
        ofqctl(
            "quantize", "vit_tiny", *TINY, "--recipe", "ptq/erq", "--calib-data", "digits", "--data", "digits",
            "--set", "weights.method=powers", "weights.bits=3", "calibration.images=32",
            "ptq=[{stage: erq}, {stage: bias_correction}]", "--output", "run", "--json",
        )
    )  # fmt: skip
    assert made["ptq"]["bias_correction"]
    read = json.loads(ofqctl("evaluate", "run", "--data", "digits", "--json"))
    assert read["top1"] == made["evaluation"]["quantized"]["top1"]
    assert "powers" in ofqctl("inspect", "run")
    analysis = json.loads(ofqctl("analyze-oscillation", "run", "--json"))
    assert {layer["method"] for layer in analysis["checkpoints"][0]["layers"]} == {"powers", "uniform"}
    exported = json.loads(
        ofqctl("export", "run", "--onnx", "--verify-data", "digits", "--verify-images", "32", "--json")
    )
    assert exported["verification"]
    file = json.loads(ofqctl("evaluate", "run/model.onnx", "--data", "digits", "--json"))
    assert file["top1"] == pytest.approx(read["top1"], abs=0.6)


@pytest.mark.slow
def test_a_foreign_quantizer_remedy_and_term_train(ofqctl, tmp_path):
    sets = ["weights.method=powers", "weights.bits=3", "training.distillation=null", *ONE_STEP]
    sets += ["training.terms={confidence: {weight: 0.1}}"]
    train = ["train", "vit_tiny", *TINY, "--recipe", "lsq", "--data", "digits", "--output", "run", "--set", *sets]
    ofqctl(*train)
    assert json.loads(ofqctl("evaluate", "run", "--data", "digits", "--json"))["images"] > 0
    ofqctl("train", "run", "--data", "digits", "--output", "next", "--set", *ONE_STEP)


@pytest.mark.slow
def test_without_the_package_its_run_is_refused_by_the_name_of_the_method(site, ofqctl, tmp_path):
    quick = ["--set", "weights.method=powers", "weights.bits=3", "calibration.images=8"]
    ofqctl("quantize", "vit_tiny", *TINY, "--recipe", "ptq/minmax", "--calib-data", "digits", *quick, "--output", "run")
    command = [sys.executable, "-m", "ofqctl", "inspect", "run"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "'powers' is unknown" in ended.stderr


def test_a_foreign_attention_class_has_its_products_quantized(site, monkeypatch):
    monkeypatch.syspath_prepend(str(site))
    import torch

    from ofqctl.convert import convert
    from ofqctl.recipe.catalogue import load

    attention = pytest.importorskip("my_methods.attention")
    model = torch.nn.Sequential(torch.nn.Flatten(2), attention.PlainAttention(64))
    plan = convert(model, load("ptq/minmax"), (3, 8, 8))
    assert plan.modules["1"].operands.keys() == {"q", "k", "softmax", "v"}
