"""Data, code and places that change between the rows of a study."""

import os

import pytest

from ofqctl.studies import measures, steps
from tests.studies.conftest import FIGURES

ROWS = {"a": "python work.py a{seed} score {val}", "b": "python work.py b score"}


@pytest.fixture
def half(bench):
    """A study of which the first seed was run, then the data changed."""
    data = bench.folder / "images"
    data.mkdir()
    (data / "1.png").write_bytes(b"one")
    bench.write(rows=ROWS, matrix={"seed": [0, 1]}, data={"val": None}, figures=FIGURES)
    assert bench.do("run", "--data", f"val={data}", "--only", "a seed=0").code == 0
    (data / "1.png").write_bytes(b"two")
    return bench


@pytest.mark.parametrize("only", [(), ("--only", "a seed=1"), ("--only", "b"), ("--dry-run",)])
def test_data_that_changed_since_some_rows_ran_is_refused_with_both_digests(half, only):
    before = half.files()
    record = half.record()
    ended = half.do("run", *only)
    assert ended.code == 1
    assert "data 'val': 1 row was measured on other contents" in ended.err
    assert record["data"]["val"] in ended.err
    assert "--mix-data" in ended.err
    assert half.files() == before
    assert half.ran == {"a0": 1}


def test_mixed_data_keeps_the_rows_of_before_and_the_report_says_so(half):
    assert half.states()["a seed=0"] == "other data"
    assert half.do("run", "--mix-data").code == 0
    assert half.ran == {"a0": 1, "a1": 1, "b": 1}
    report = half.do("report", "--json").json
    assert len(report["provenance"]["data"]["val"]) == 2
    assert any("data 'val' had 2 contents" in note for note in report["notes"])


def test_data_that_only_was_touched_is_the_same(half):
    (half.folder / "images" / "1.png").write_bytes(b"one")
    os.utime(half.folder / "images" / "1.png", (1, 1))
    assert half.do("run").code == 0
    assert half.ran == {"a0": 1, "a1": 1, "b": 1}


def test_data_of_a_measuring_command_alone_is_refused_as_well(bench, monkeypatch):
    for name in ("calib", "val"):
        (bench.folder / name).mkdir()
        (bench.folder / name / "1").write_text("one")
    monkeypatch.setitem(measures.MEASURES, "size", measures.Measure(lambda document, record: {}, "python work.py"))
    row = {"command": "python work.py a score {calib} {output}", "measure": {"size": "score {val}"}}
    bench.write(rows={"a": row}, data={"calib": "calib", "val": "val"})
    assert bench.do("run").code == 0
    (bench.folder / "val" / "1").write_text("two")
    ended = bench.do("run")
    assert (ended.code, bench.ran["a"], bench.ran.total()) == (1, 1, 2)
    assert "data 'val': 1 row was measured on other contents" in ended.err


def test_where_data_was_is_known_from_the_last_run_until_the_study_says_another_place(bench):
    for name in ("one", "two"):
        (bench.folder / name).mkdir()
        (bench.folder / name / "1").write_text(name)
    rows = {"a": "python work.py a{seed} score {val}"}
    bench.write(rows=rows, data={"val": None}, matrix={"seed": [0]})
    assert bench.do("run", "--data", "val=one").code == 0
    bench.write(rows=rows, data={"val": None}, matrix={"seed": [0, 1]})
    assert bench.do("run").code == 0
    bench.write(rows=rows, data={"val": "two"}, matrix={"seed": [0, 1]})
    assert "2 rows were measured on other contents" in bench.do("run").err


def test_other_code_runs_everything_anew_unless_it_may_be_mixed(bench, monkeypatch):
    bench.write(rows={"a": "python work.py a{seed} score"}, matrix={"seed": [0, 1]}, figures=FIGURES)
    bench.do("run", "--only", "*seed=0")
    monkeypatch.setattr(steps, "of_code", lambda: "f" * 64)
    assert bench.states() == {"a seed=0": "other code", "a seed=1": "missing"}
    assert bench.do("run", "--mix-code").code == 0
    assert bench.ran == {"a0": 1, "a1": 1}
    assert any("2 versions of the program" in note for note in bench.do("report", "--json").json["notes"])
    assert bench.do("run").code == 0
    assert bench.ran == {"a0": 2, "a1": 1}
    assert len(bench.do("report", "--json").json["provenance"]["codes"]) == 1


def test_rows_that_differ_in_what_starts_them_are_different_steps(bench):
    bench.write(rows={"a": "recipe ls", "b": {"command": "recipe ls", "launcher": "nice python"}})
    assert bench.do("run", "--only", "a").code == 0
    assert bench.states() == {"a": "done", "b": "missing"}
