"""Damaged files of every kind, through the commands that read them."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_gives_what_the_undamaged_one_gives():
    # in a process of its own, whose memory and time are limited
    command = [sys.executable, "-m", "tests.fuzz.harness", "--count", "500"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
