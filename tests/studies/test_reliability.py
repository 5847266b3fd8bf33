"""The scripts of the study of reliability: what they print, and where they cannot run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ofqctl.studies import catalogue

SCRIPTS = catalogue.folder() / "reliability"


def ended(script: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, str(script), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kill.py", ["quantize", "--moments", "1"]),
        ("full_disk.py", ["quantize", "--moments", "1"]),
        ("damages.py", ["sealed", "--count", "1"]),
    ],
)
def test_outside_of_a_clone_a_script_says_so(tmp_path, name, words):
    copy = shutil.copytree(SCRIPTS, tmp_path / "ofqctl" / "recipes" / "studies" / "reliability") / name
    found = ended(copy, *words)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.endswith("not there; these rows run in a clone of the project only\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "count", "outcomes"),
    [
        ("kill.py", ["quantize", "--moments", "2"], "moments", ["old", "new", "between"]),
        ("full_disk.py", ["quantize", "--moments", "2"], "moments", ["refused", "had_enough"]),
        ("damages.py", ["re-signed", "--count", "4"], "damages", ["refused", "same", "told", "other"]),
    ],
)
def test_every_trial_has_an_outcome_and_none_is_a_fault(name, words, count, outcomes):
    found = ended(SCRIPTS / name, *words)
    if found.returncode == 77:
        pytest.skip(found.stderr)
    assert found.returncode == 0, found.stderr
    document = json.loads(found.stdout)
    figures = document.pop("figures")
    assert document == {"versions": {}}
    assert figures.keys() == {count, "faults", *outcomes}
    assert (figures["faults"], figures[count]) == (0, int(words[-1]))
    assert sum(figures[outcome] for outcome in outcomes) == figures[count]


@pytest.mark.slow
def test_an_epoch_has_22_steps():
    found = ended(SCRIPTS / "epochs.py", "--threads", "1", "--width", "32", "--epochs", "1", "--busy")
    assert found.returncode == 0, found.stderr
    figures = json.loads(found.stdout)["figures"]
    assert figures["epoch"] == pytest.approx(22 * figures["step"])
    assert figures["step"] > 0
