"""What this package sets before other libraries are loaded, and which of these a command loads."""

import json
import os
import subprocess
import sys

import pytest

from ofqctl.environment import prepare

SET = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "OMP_WAIT_POLICY")
ONNX = ("onnx", "onnxscript", "onnxruntime", "openvino")


def in_new_process(code, **variables):
    inherited = {name: value for name, value in os.environ.items() if name not in SET}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=inherited | variables, capture_output=True, text=True, check=True
    )
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture
def unset(monkeypatch):
    for name in SET:
        monkeypatch.setenv(name, "")  # so that what `prepare` sets is undone after the test
        monkeypatch.delenv(name)


def test_the_program_is_private_and_its_threads_wait_passively_before_any_library_is_loaded():
    seen = in_new_process(
        "import sys, os, json, ofqctl.cli.app\n"
        f"print(json.dumps([[os.environ.get(n) for n in {SET!r}], 'torch' in sys.modules]))"
    )
    assert seen == [["1", "1", "PASSIVE"], False]


@pytest.mark.parametrize("name", SET)
def test_what_the_user_has_set_stays(unset, monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE")
    prepare()
    assert os.environ[name] == "ACTIVE"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_how_threads_wait_is_left_to_the_other_variables_that_say_it(unset, monkeypatch, name):
    monkeypatch.setenv(name, "1000")
    prepare()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_commands_without_onnx_files_load_nothing_of_onnx(tmp_path):
    model = "vit_tiny --no-pretrained --num-classes 10 --model-kwargs img_size=32 patch_size=8 embed_dim=16 depth=1"
    model += " num_heads=2"
    few = "--set calibration.images=8 calibration.batch_size=4"
    commands = [
        f"quantize {model} --recipe ptq/minmax {few} --calib-data digits --output run",
        "evaluate run --data digits --limit 8",
        "inspect run",
        f"train {model} --recipe statsq --data digits --output trained"
        " --set training.phases.0.epochs=1 training.steps_per_epoch=1 training.batch_size=8",
    ]
    codes, loaded = in_new_process(
        f"import sys, os, json; os.chdir({str(tmp_path)!r})\nfrom ofqctl.cli.app import main\n"
        f"codes = [main(line.split()) for line in {commands!r}]\n"
        f"print(json.dumps([codes, sorted(set({ONNX!r}) & set(sys.modules))]))"
    )
    assert codes == [0] * len(commands)
    assert loaded == []
