"""A folder for a small study whose rows are scripts, and the program run on it."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ofqctl.cli.app import main
from tests.cli.conftest import Ended

WORK = """\
import json, os, signal, sys, time
name, how, *more = sys.argv[1:]
with open("ran.txt", "a") as file:
    file.write(name + "\\n")
if how == "sleep":
    time.sleep(float(more[0]))
elif how == "fail":
    sys.exit("it cannot be done")
elif how == "fail-late":
    time.sleep(float(more[0]))
    sys.exit("it was too much")
elif how == "cannot":
    sys.stderr.write("there is no such device\\n")
    sys.exit(77)
elif how == "fails-unless" and not os.path.exists(more[0]):
    sys.exit(f"there is no {more[0]}")
elif how == "print":
    print(more[0])
    sys.exit()
elif how == "kill":
    os.kill(os.getpid(), int(more[0]))
elif how == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(float(more[0]))
elif how == "talk":
    sys.stderr.write("much\\n" * 2_000_000)
    print(json.dumps({"figures": {"score": 1.0}, "much": "x" * 10_000_000}))
    sys.exit()
print(json.dumps({"figures": {"score": float(sum(map(ord, name)))}}))
"""
FIGURES = {"score": {"path": "figures.score", "title": "score", "better": "higher"}}


class Bench:
    """A folder with a study, ``own.yaml``, and the script ``work.py NAME HOW ...``, which notes each run of it."""

    def __init__(self, folder: Path, capsys) -> None:
        self.folder, self._capsys = folder, capsys
        self.output = folder / "out"
        (folder / "work.py").write_text(WORK, encoding="utf-8")

    def write(self, name: str = "own", **values) -> Path:
        """Write a study; ``rows`` may be commands by name."""
        rows = {key: {"command": one} if isinstance(one, str) else one for key, one in values.pop("rows").items()}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"description": "A test.", "rows": rows, **values}, sort_keys=False), "utf-8")
        return path

    def words(self, command: str, *words: object, study: object = "own.yaml") -> list[str]:
        """Words of a command for the study, in the folder of its own."""
        return ["study", command, str(study), "--output", str(self.output), *map(str, words)]

    def do(self, command: str, *words: object, study: object = "own.yaml") -> Ended:
        """Run a command in this process."""
        return self.ofqctl(*self.words(command, *words, study=study))

    def ofqctl(self, *words: object) -> Ended:
        """Run the program in this process."""
        self._capsys.readouterr()
        code = main([str(word) for word in words])
        return Ended(code, *self._capsys.readouterr())

    def start(self, command: str, *words: object, **options) -> "subprocess.Popen[str]":
        """Start a command in a process, and a group, of its own."""
        argv = [sys.executable, "-m", "ofqctl", *self.words(command, *words)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(argv, cwd=self.folder, start_new_session=True, **pipes | options)

    @property
    def ran(self) -> Counter:
        """How often the script was run, by the name that it was given."""
        path = self.folder / "ran.txt"
        return Counter(path.read_text().split("\n")[:-1]) if path.exists() else Counter()

    def wait_for(self, name: str, times: int = 1) -> None:
        """Wait until the script was started so often with a name."""
        deadline = time.monotonic() + 30
        while self.ran[name] < times:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def states(self, *words: object) -> dict[str, str]:
        """The state of each row."""
        return {row["row"]: row["state"] for row in self.do("status", *words, "--json").json["rows"]}

    def scores(self) -> dict[str, list[float]]:
        """Scores of each row, by its name without a seed."""
        rows = self.do("report", "--json").json["rows"]
        return {row["row"]: row["figures"]["score"]["values"] for row in rows}

    def files(self) -> set[str]:
        """Every file in the folder of what is run."""
        return {str(path.relative_to(self.output)) for path in self.output.rglob("*")}

    def records(self) -> list[Path]:
        """Records of steps that ended."""
        return sorted(self.output.glob("steps/*/record.json"))

    def record(self, start: str = "") -> dict:
        """The only record of a step whose folder begins so."""
        (path,) = self.output.glob(f"steps/{start}*/record.json")
        return json.loads(path.read_text())


@pytest.fixture
def bench(tmp_path, capsys, monkeypatch) -> Bench:
    """A bench in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OFQCTL_DEBUG", raising=False)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    )
    return Bench(tmp_path, capsys)
