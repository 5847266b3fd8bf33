"""The steps of the GitHub Action, run with bash as a runner does."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
TINY = (
    "--no-pretrained --num-classes 10 --model-kwargs img_size=32 patch_size=8 embed_dim=48 depth=1 num_heads=3 "
    "--set calibration.images=8"
)


@dataclass
class Ended:
    """How the steps ended."""

    code: int
    said: str
    summary: str
    outputs: dict[str, str]


def run_steps(folder, **inputs):
    """Run the steps of the action that have a script; inputs with ``_`` for ``-``."""
    given = {name.replace("_", "-"): value for name, value in inputs.items()}
    assert given.keys() <= ACTION["inputs"].keys()
    known = {f"inputs.{name}": str(about.get("default", "")) for name, about in ACTION["inputs"].items()}
    known |= {f"inputs.{name}": value for name, value in given.items()} | {"github.action_path": str(ROOT)}
    summary, outputs = folder / "summary.md", folder / "outputs"
    said, code = "", 0
    python = folder / "bin"
    python.mkdir(exist_ok=True)
    (python / "python").unlink(missing_ok=True)
    (python / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (python / "python").chmod(0o755)
    runner = {
        "PATH": f"{python}:{os.environ['PATH']}",
        "GITHUB_ACTION_PATH": str(ROOT),
        "GITHUB_STEP_SUMMARY": str(summary),
        "GITHUB_OUTPUT": str(outputs),
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    for step in ACTION["runs"]["steps"]:
        if "run" not in step:
            continue
        own = {
            name: re.sub(r"\$\{\{ *([\w.-]+) *\}\}", lambda match: known[match[1]], str(value))
            for name, value in step["env"].items()
        }
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        ended = subprocess.run(
            command, cwd=folder, env=os.environ | runner | own, capture_output=True, text=True, check=False
        )
        said, code = said + ended.stdout + ended.stderr, ended.returncode
        if code:
            break
    written = outputs.read_text().splitlines() if outputs.exists() else []
    return Ended(
        code, said, summary.read_text() if summary.exists() else "", dict(line.split("=", 1) for line in written)
    )


@pytest.mark.slow
def test_a_model_is_quantized_and_held_against_every_limit(tmp_path):
    made = {"model": "vit_tiny_patch16_224", "run": "q", "recipe": "ptq/minmax", "options": TINY, "install": "none"}
    ended = run_steps(tmp_path, **made, calib_data="digits", data="digits", max_size="1", max_drop="100")
    assert ended.code == 0, ended.said
    assert ended.outputs["passed"] == "true"
    assert float(ended.outputs["megabytes"]) < 1
    assert 0 <= float(ended.outputs["top1"]) <= 100
    assert "| size |" in ended.summary
    assert "at most 1 MB | met |" in ended.summary
    assert "**not met**" not in ended.summary

    # The run is checked again, on its own: limits that are missed, and one without a figure.
    ended = run_steps(tmp_path, run="q", install="none", min_top1="101", max_oscillating="2")
    assert ended.code == 1
    assert ended.outputs["passed"] == "false"
    assert ended.summary.count("### ofqctl: `q`") == 2
    assert ended.summary.count("**not met**") == 2
    assert "::error title=ofqctl::top-1:" in ended.said
    assert "::error title=ofqctl::oscillating, worst layer: q: no tracker state" in ended.said


def test_what_cannot_be_checked_fails_and_says_why(tmp_path):
    ended = run_steps(tmp_path, run="q", install="none", min_top1="high")
    assert ended.code == 1
    assert "::error::min-top1: 'high' is not a number" in ended.said
    ended = run_steps(tmp_path, run="q", install="none")
    assert ended.code == 1
    assert "q: not a run directory" in ended.said
    assert ended.outputs == {}


def test_every_output_is_written_and_every_input_used():
    script = (ROOT / "action" / "check.py").read_text()
    text = (ROOT / "action.yml").read_text()
    assert all(f'"{name}"' in script for name in ACTION["outputs"])
    assert all(f"inputs.{name} }}}}" in text or f"inputs.{name} !=" in text for name in ACTION["inputs"])
