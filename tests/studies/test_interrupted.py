"""Studies that are ended by a signal: what is told, what is kept, and what goes on."""

import os
import random
import signal
import time
from contextlib import suppress

import pytest

from tests.studies.conftest import FIGURES


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_running_step_and_is_told_in_one_line(bench, number, code):
    bench.write(rows={"a": "python work.py a score", "b": "python work.py b sleep 30", "c": "python work.py c score"})
    running = bench.start("run", "--mix-code", "--quiet")
    bench.wait_for("b")
    began = time.monotonic()
    running.send_signal(number)
    out, err = running.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert (running.returncode, out) == (code, "")
    command = f"`ofqctl study run own.yaml --output {bench.output} --mix-code` goes on"
    assert err.strip().splitlines() == [f"interrupted; what is done is kept: {command}"]
    assert bench.states() == {"a": "done", "b": "missing", "c": "missing"}
    assert bench.ran == {"a": 1, "b": 1}


def test_ctrl_c_for_the_whole_group_records_no_failure(bench):
    bench.write(rows={"a": "python work.py a{n} sleep 30"}, matrix={"n": [0, 1]})
    running = bench.start("run", "--jobs", 2)
    bench.wait_for("a0")
    bench.wait_for("a1")
    os.killpg(running.pid, signal.SIGINT)
    running.communicate(timeout=20)
    assert set(bench.states().values()) == {"missing"}
    assert not bench.records()


def test_a_second_signal_kills_what_does_not_end(bench):
    bench.write(rows={"a": "python work.py a ignore 30"})
    running = bench.start("run")
    bench.wait_for("a")
    time.sleep(0.3)
    running.terminate()
    time.sleep(0.5)
    assert running.poll() is None
    running.terminate()
    running.communicate(timeout=10)
    assert running.returncode == 143
    assert bench.states() == {"a": "missing"}


def test_a_step_that_the_system_kills_is_not_done_and_runs_again(bench):
    bench.write(rows={"a": "python work.py a kill 9", "b": "python work.py b score"})
    ended = bench.do("run", "--json")
    assert ended.code == 1
    assert ended.json["rows"][0]["failure"]["message"] == "ended by SIGKILL"
    bench.do("run")
    assert bench.ran == {"a": 2, "b": 1}


@pytest.mark.parametrize("whole_group", [False, True])
def test_a_killed_study_goes_on_and_gives_the_same_tables(bench, whole_group):
    table = {"title": "t", "rows": ["n"], "figures": ["score"]}
    values = {"matrix": {"n": [*range(3)], "seed": [0, 1]}, "figures": FIGURES, "tables": [table]}
    bench.write(rows={"a": "python work.py a{n}{seed} sleep 0.1"}, **values)
    draw = random.Random(0)
    for _ in range(3):
        running = bench.start("run", "--jobs", 2)
        time.sleep(draw.uniform(0.3, 0.9))
        with suppress(ProcessLookupError):
            (os.killpg if whole_group else os.kill)(running.pid, signal.SIGKILL)
        running.communicate()
    assert bench.do("run").code == 0
    killed = bench.do("report", "--json").json["tables"]
    bench.output = bench.folder / "undisturbed"
    bench.do("run", "--jobs", 4)
    assert bench.do("report", "--json").json["tables"] == killed
    assert len(killed[0]["lines"]) == 3
