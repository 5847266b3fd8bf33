"""Running a study: what runs, what does not run again, what becomes of failures, and what is refused ahead."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.studies.conftest import FIGURES

SEEDS = {"seed": [0, 1]}


def test_rows_run_once_and_are_reported(bench):
    bench.write(
        rows={"a": "python work.py a{seed} score", "b": "python work.py b score"}, matrix=SEEDS, figures=FIGURES
    )
    ended = bench.do("run", "--json")
    assert (ended.code, [row["state"] for row in ended.json["rows"]]) == (0, ["done"] * 3)
    assert bench.scores() == {"a": [145.0, 146.0], "b": [98.0]}
    assert bench.do("run").code == 0
    assert bench.ran == {"a0": 1, "a1": 1, "b": 1}


def test_what_is_added_later_runs_alone(bench):
    bench.write(rows={"a": "python work.py a{seed} score"}, matrix={"seed": [0]})
    bench.do("run")
    bench.write(rows={"a": "python work.py a{seed} score", "b": "python work.py b score"}, matrix=SEEDS)
    bench.do("run")
    assert bench.ran == {"a0": 1, "a1": 1, "b": 1}


def test_a_model_that_rows_share_is_made_once(bench):
    models = {"made": {"make": "python work.py made score {output}"}}
    bench.write(rows={"a": "python work.py a{seed} score {made}"}, matrix=SEEDS, models=models)
    bench.do("run", "--jobs", 2)
    assert bench.ran == {"made": 1, "a0": 1, "a1": 1}


def test_only_takes_rows_by_a_pattern_or_by_their_very_name(bench):
    labels = {"[x]": "x", "x": "y", "*": "z"}
    bench.write(rows={"a": "python work.py {m} score"}, matrix={"m": labels})
    bench.do("run", "--only", "a m=[x]")
    assert bench.ran == {"x": 1}
    bench.do("run", "--only", "*m=?")
    assert bench.ran == {"x": 1, "y": 1, "z": 1}


def test_failures_are_kept_beside_their_reasons_and_stop_nothing(bench):
    bench.write(
        rows={
            "fails": "python work.py a fail",
            "needs": "python work.py b score {made}",
            "prints": "python work.py c print nothing",
            "words": """python work.py d print '{"figures": {"score": "much"}}'""",
            "list": """python work.py e print '{"figures": [1]}'""",
            "dies": f"python work.py f kill {int(signal.SIGSEGV)}",
            "works": "python work.py g score",
        },
        models={"made": {"make": "python work.py h fail {output}"}},
    )
    ended = bench.do("run", "--json")
    failures = {row["row"]: (row["failure"] or {}).get("message") for row in ended.json["rows"]}
    assert ended.code == 1
    assert failures == {
        "fails": "ended with exit code 1: it cannot be done",
        "needs": "python: ended with exit code 1: it cannot be done",
        "prints": "it printed no JSON document",
        "words": "figures.score: a number is expected, seen 'much'",
        "list": "figures: numbers by name are expected, seen [1]",
        "dies": "ended by SIGSEGV: it printed nothing",
        "works": None,
    }
    reasons = {row["row"]: row["reason"] for row in bench.do("report", "--json").json["failures"]}
    assert reasons.keys() == failures.keys() - {"works"}
    assert reasons["fails"] == "python: ended with exit code 1: it cannot be done"
    shown = bench.do("status")
    assert "failed    fails: ended with exit code 1: it cannot be done" in shown.out
    ran = bench.ran
    assert bench.do("run").code == 1
    assert bench.ran == ran


def test_retry_runs_again_what_failed_and_only_that(bench):
    bench.write(rows={"a": "python work.py a fails-unless there", "b": "python work.py b score"})
    assert bench.do("run").code == 1
    (bench.folder / "there").touch()
    assert bench.do("run").code == 1
    assert bench.do("run", "--retry").code == 0
    assert bench.do("run", "--retry").code == 0
    assert bench.ran == {"a": 2, "b": 1}


def test_retry_tries_once_what_several_rows_need(bench):
    models = {"made": {"make": "python work.py made fail {output}"}}
    bench.write(rows={"a": "python work.py a{seed} score {made}"}, matrix=SEEDS, models=models)
    bench.do("run")
    assert bench.do("run", "--retry", "--dry-run", "--json").json["rows"][0]["state"] == "missing"
    bench.do("run", "--retry", "--jobs", 2)
    assert bench.ran == {"made": 2}


def test_a_changed_script_runs_again_and_a_failure_of_it_is_what_is_reported(bench):
    bench.write(rows={"a": "python work.py a score"}, figures=FIGURES)
    bench.do("run")
    script = bench.folder / "work.py"
    script.write_text(script.read_text() + "sys.exit('broken')\n")
    assert bench.states() == {"a": "missing"}
    assert bench.do("run").code == 1
    assert bench.do("report", "--json").json["failures"][0]["reason"] == "python: ended with exit code 1: broken"


def test_much_output_is_no_hindrance(bench):
    bench.write(rows={"a": "python work.py a talk"}, figures=FIGURES)
    assert bench.do("run").code == 0
    assert bench.scores() == {"a": [1.0]}


def test_a_missing_package_leaves_a_row_out(bench):
    bench.write(
        rows={"a": {"command": "python work.py a score", "needs": ["no-such-package"]}, "b": "python work.py b score"}
    )
    ended = bench.do("run", "--json")
    assert ended.code == 0
    assert [(row["state"], row["reason"]) for row in ended.json["rows"]] == [
        ("left out", "no-such-package: not installed"),
        ("done", None),
    ]
    assert bench.do("report", "--json").json["failures"][0]["reason"] == "left out: no-such-package not installed"
    assert bench.ran == {"b": 1}


def test_a_script_that_cannot_run_here_leaves_its_row_out_and_is_asked_again(bench):
    bench.write(rows={"a": "python work.py a cannot", "b": "python work.py b score"})
    for _ in range(2):
        ended = bench.do("run", "--json")
        assert ended.code == 0
        assert [(row["state"], row["reason"]) for row in ended.json["rows"]] == [
            ("left out", "there is no such device"),
            ("done", None),
        ]
    assert bench.ran == {"a": 2, "b": 1}
    assert bench.states() == {"a": "left out", "b": "done"}
    assert bench.do("report", "--json").json["failures"][0]["reason"] == "left out: there is no such device"


def test_what_cannot_be_started_is_a_failure_of_its_row(bench):
    bench.write(rows={"a": {"command": "doctor", "launcher": "no-such-program --fast"}, "b": "python work.py b score"})
    ended = bench.do("run", "--json")
    assert (
        ended.json["rows"][0]["failure"]["message"]
        == "ended with exit code 127: no-such-program: cannot be started: No such file or directory"
    )
    assert ended.json["rows"][1]["state"] == "done"


def test_a_command_of_the_program_that_fails_says_why_in_its_own_words(bench):
    bench.write(rows={"a": "recipe show nothing"})
    message = bench.do("run", "--json").json["rows"][0]["failure"]["message"]
    assert "nothing" in message
    assert "exit code" not in message


def test_modules_beside_a_study_do_not_stand_in_for_those_of_python(bench):
    (bench.folder / "statistics.py").write_text("raise SystemExit('the wrong one')")
    bench.write(rows={"a": "recipe ls"})
    assert bench.do("run").code == 0


def test_a_time_budget_begins_no_row_that_would_not_end_in_it(bench):
    bench.write(
        rows={"a": "python work.py a{seed} score", "long": {"command": "python work.py long score", "minutes": 9}},
        matrix=SEEDS,
    )
    nothing = bench.do("run", "--time-budget", 0, "--json")
    assert {row["state"] for row in nothing.json["rows"]} == {"left out"}
    assert not bench.ran
    ended = bench.do("run", "--time-budget", 60, "--json")
    assert ended.code == 0
    assert [row["state"] for row in ended.json["rows"]] == ["done", "done", "left out"]
    assert ended.json["rows"][2]["reason"].startswith("takes about 9 min; 1 min of the time")
    assert "left out  long: takes about 9 min" in bench.do("run", "--time-budget", 60).out


def test_a_dry_run_says_what_is_left_and_how_long_it_takes_and_writes_nothing(bench):
    bench.write(rows={"a": {"command": "python work.py a{seed} sleep 0.3", "minutes": 5}}, matrix=SEEDS)
    assert "to run    2 of 2 rows, about 10 min" in bench.do("run", "--dry-run").out
    assert not bench.output.exists()
    bench.do("run", "--only", "*seed=0")
    before = bench.files()
    shown = bench.do("run", "--dry-run", "--json")
    assert [row["state"] for row in shown.json["rows"]] == ["done", "missing"]
    assert 0.2 < shown.json["rows"][1]["estimate"] < 5
    assert "to run    1 of 2 rows, about" in bench.do("run", "--dry-run").out
    assert bench.files() == before
    assert bench.ran == {"a0": 1}


def test_what_has_failed_is_not_to_be_run(bench):
    bench.write(rows={"a": {"command": "python work.py a fail", "minutes": 5}})
    bench.do("run")
    assert "to run    0 of 1 rows" in bench.do("run", "--dry-run").out
    assert "to run    1 of 1 rows" in bench.do("run", "--dry-run", "--retry").out
    assert bench.do("status", "--json").json["estimate"] == 0


@pytest.mark.parametrize("kind", ["sh", "slurm"])
def test_an_emitted_script_runs_each_row_by_itself(bench, kind):
    bench.write(rows={"a": "python work.py {m} score"}, matrix={"m": {"it's [1] $HOME": "x", "y z": "y"}})
    bench.do("run", "--only", "*y z")
    bench.write(
        rows={"a": "python work.py {m} score", "b": "python work.py b score"},
        matrix={"m": {"it's [1] $HOME": "x", "y z": "y"}},
    )
    script = bench.do("run", "--mix-code", "--emit", kind).out
    assert script.startswith("#!/bin/sh\n")
    assert script.count("ofqctl study run own.yaml") == 2
    assert script.count(f"--output {bench.output}") == script.count("--mix-code") == 2
    assert bench.ran == {"y": 1}
    script = script.replace("ofqctl study", f"{sys.executable} -m ofqctl study")
    tasks = [{}] if kind == "sh" else [{"SLURM_ARRAY_TASK_ID": number} for number in "12"]
    assert kind == "sh" or "#SBATCH --array=1-2\n" in script
    for task in tasks:
        subprocess.run(["sh", "-c", script], env=os.environ | task, check=True, capture_output=True)
    assert bench.ran == {"x": 1, "y": 1, "b": 1}


def test_shards_are_disjoint_and_together_everything(bench):
    bench.write(rows={"a": "python work.py a{n} score"}, matrix={"n": [*range(5)]})
    parts = [
        {row["row"] for row in bench.do("run", "--dry-run", "--shard", f"{n}/3", "--json").json["rows"]}
        for n in (1, 2, 3)
    ]
    assert sorted(len(part) for part in parts) == [1, 2, 2]
    assert len(set.union(*parts)) == 5


@pytest.mark.parametrize(
    "options", [(("--shard", "1/2"), ("--shard", "2/2")), ((), ()), (("--jobs", "2"), ("--jobs", "2"))]
)
def test_runs_beside_each_other_in_one_folder_run_nothing_twice_and_lose_nothing(bench, options):
    models = {"made": {"make": "python work.py made sleep 0.3 {output}"}}
    bench.write(rows={"a": "python work.py a{n} sleep 0.05 {made}"}, matrix={"n": [*range(6)]}, models=models)
    started = [bench.start("run", "--json", *words) for words in options]
    ended = [(one.communicate(timeout=60)[0], one.returncode) for one in started]
    assert [code for _, code in ended] == [0, 0]
    assert {row["state"] for out, _ in ended for row in json.loads(out)["rows"]} == {"done"}
    assert bench.ran == {"made": 1, **{f"a{n}": 1 for n in range(6)}}
    assert set(bench.states().values()) == {"done"}


def test_retry_beside_each_other_runs_what_failed_once_again(bench):
    bench.write(rows={"a": "python work.py a fail-late 1.3"})
    bench.do("run")
    first = bench.start("run", "--retry")
    bench.wait_for("a", 2)
    assert bench.do("run", "--retry").code == first.wait(30) == 1
    assert bench.ran == {"a": 2}


def test_jobs_run_beside_each_other_and_records_say_how_many(bench):
    bench.write(rows={"a": "python work.py a{n} sleep 0.6"}, matrix={"n": [*range(4)]})
    began = time.monotonic()
    bench.do("run", "--jobs", 4)
    assert time.monotonic() - began < 2.0
    besides = [json.loads(path.read_text())["beside"] for path in bench.records()]
    assert besides == [3, 3, 3, 3]
    assert bench.do("report", "--json").json["provenance"]["beside"] == 3


def test_a_row_that_is_running_elsewhere_is_shown_so(bench):
    bench.write(rows={"a": "python work.py a sleep 20"})
    other = bench.start("run")
    bench.wait_for("a")
    assert bench.states() == {"a": "running"}
    other.terminate()
    other.wait(20)
    assert bench.states() == {"a": "missing"}


def test_a_study_moves_with_its_folder_and_may_lie_at_a_path_with_blanks(bench):
    there = bench.folder / "my studies"
    there.mkdir()
    for name in ("work.py",):
        (bench.folder / name).rename(there / name)
    bench.write(rows={"a": "python work.py a score"}).rename(there / "own.yaml")
    assert bench.do("run", study="my studies/own.yaml").code == 0
    assert bench.ofqctl("study", "status", bench.output, "--json").json["rows"][0]["state"] == "done"
    assert bench.ofqctl("study", "run", bench.output).code == 0
    assert (there / "ran.txt").read_text() == "a\n"


@pytest.mark.parametrize("named", [(), ("--output", "out")])
def test_commands_write_into_the_folder_wherever_they_run(bench, tmp_path, monkeypatch, named):
    bench.write(rows={"a": "python write.py {predictions}"}, figures=FIGURES)
    (bench.folder / "write.py").write_text(
        "import json, sys; open(sys.argv[1], 'w').write('image'); print(json.dumps({'figures': {'score': 1.0}}))"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert bench.ofqctl("study", "run", "../own.yaml", *named).code == 0
    written = Path(*named[1:] or ("runs", "studies", "own")).glob("steps/*/predictions.csv")
    assert [path.read_text() for path in written] == ["image"]


def test_a_model_at_a_path_with_blanks_is_one_word_and_is_seen_from_the_current_folder(bench, monkeypatch):
    (bench.folder / "studies").mkdir()
    (bench.folder / "work.py").rename(bench.folder / "studies" / "work.py")
    bench.write(rows={"a": "python work.py a print {m}"}, models={"m": "x y"}).rename(
        bench.folder / "studies" / "own.yaml"
    )
    for name in ("my model", "my other"):
        (bench.folder / name).mkdir()
        (bench.folder / name / "file").write_text(name)
    other = bench.folder / "my other"
    for given, seen in (
        ("my model", str(bench.folder / "my model")),
        ("hf-hub:x/y", "hf-hub:x/y"),
        ("local-dir:my other", f"local-dir:{other}"),
    ):
        bench.do("run", "--model", f"m={given}", study="studies/own.yaml")
        assert seen + "\n" in {path.read_text() for path in bench.output.glob("steps/*/document.json")}


def test_data_and_models_that_were_said_once_are_known_from_then_on(bench):
    (bench.folder / "images").mkdir()
    rows = {"a": "python work.py a score {val} {net}", "b": "python work.py b score {net}"}
    bench.write(rows=rows, data={"val": None}, models={"net": "one"}, figures=FIGURES)
    assert bench.do("run", "--data", "val=images", "--model", "net=other", "--only", "a").code == 0
    assert bench.states() == {"a": "done", "b": "missing"}
    assert bench.do("run").code == 0
    assert bench.states() == {"a": "done", "b": "done"}
    assert bench.ran == {"a": 1, "b": 1}
    assert bench.states("--model", "net=one") == {"a": "missing", "b": "missing"}
