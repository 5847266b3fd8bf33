"""The shipped studies: they load, their commands parse, and every figure that they name can be there."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from ofqctl.cli.app import parsed
from ofqctl.studies import catalogue
from ofqctl.studies.figures import references
from ofqctl.studies.measures import MEASURES, OVER_IMAGES
from ofqctl.studies.reporting import check
from ofqctl.studies.rows import is_at, rows_of
from ofqctl.studies.steps import PYTHON
from tests.cli.conftest import check_documented

ROOT = Path(__file__).resolve().parents[2]
OF = {
    "accuracy": {"top1", "top5", "loss", "knn", "recall1", "cosine"},
    "paired": set(),
    "size": {"bytes"},
    "latency": {"speed_1", "ms_1", "speed_8", "ms_8"},
    "oscillation": {"oscillating", "flips"},
    "seconds": {"seconds", "cpu_seconds"},
    "memory": {"peak_bytes"},
}  # figures by measure


@pytest.fixture(params=catalogue.names())
def study(request):
    return catalogue.find(request.param).study


def words_of(step):
    return ["".join(piece if isinstance(piece, str) else "x" for piece in word) for word in step.all_words]


def figures_of(study, row):
    """Figures that a row can have."""
    measured = study.measured(study.rows[row.labels["row"]])
    found = set(study.figures).union(*(OF[name] for name in measured))
    others = [text.partition("=")[2] for text in references(study, row.labels["row"])]
    return found | {f"{figure} vs {other}" for figure in OVER_IMAGES for other in others}


def test_every_measure_is_known_here():
    assert OF.keys() == MEASURES.keys()


def test_every_command_parses_and_every_script_is_there(study):
    rows = [row for row in rows_of(study) if row.labels.get("seed", "0") == "0"]
    for step in {step for row in rows for step in row.steps}:
        if step.command == PYTHON:
            assert (catalogue.folder() / step.option(PYTHON)).is_file()
        else:
            parsed(words_of(step))


def test_every_figure_that_is_shown_can_be_there_and_no_cell_holds_two_rows(study):
    rows = rows_of(study)
    check(study, rows)
    shown = [(table, figure) for table in study.tables for figure in table.figures]
    shown += [(plot, figure) for plot in study.plots for figure in (plot.x, plot.y)]
    shown += [(claim, claim.figure) for claim in study.claims]
    for part, figure in shown:
        chosen = [row for row in rows if is_at(row.labels, part.where)]
        assert any(figure in figures_of(study, row) for row in chosen), (part, figure)


def test_every_claim_compares_rows_that_there_are(study):
    rows = rows_of(study)
    for claim in study.claims:
        chosen = [row for row in rows if is_at(row.labels, claim.where) and claim.figure in figures_of(study, row)]
        groups = [
            {axis: label for axis, label in row.labels.items() if axis not in (claim.axis, "seed")} for row in chosen
        ]
        at = [(row.labels.get(claim.axis), group) for row, group in zip(chosen, groups, strict=True)]
        for first, second in pairwise(claim.order):
            assert any((first, group) in at and (second, group) in at for group in groups), (claim, first, second)


def test_every_study_says_about_how_long_it_takes(study):
    assert all(row.minutes for row in rows_of(study))


def test_the_list_has_every_study_as_documented(bench):
    listed = bench.ofqctl("study", "ls", "--json").json["studies"]
    assert [one["name"] for one in listed] == catalogue.names()
    assert all(one["rows"] and one["minutes"] and one["description"] for one in listed)


def test_every_document_is_as_documented(bench):
    bench.write(rows={"a": "python work.py a score", "b": "python work.py b fail"})
    for words in (["run", "--dry-run"], ["run"], ["status"], ["report"]):
        check_documented(bench.do(*words, "--json").json)
    (bench.folder / "kept.json").write_text(bench.do("report", "--json").out)
    assert bench.ofqctl("study", "report", "kept.json", "--json").json == bench.do("report", "--json").json
    failed = bench.do("run", "--only", "nothing", "--json").json
    assert failed["error"]["kind"] == "study"


@pytest.mark.slow
def test_smoke_has_the_same_figures_in_two_folders(bench):
    tables = []
    for name in ("one", "two"):
        bench.output = bench.folder / name
        some = ("--only", "*seed=0*")  # all of it is the demonstration
        ended = bench.do("run", *some, "--json", study="smoke")
        assert (ended.code, {row["state"] for row in ended.json["rows"]}) == (0, {"done"})
        report = bench.do("report", *some, "--html", f"{name}.html", "--json", study="smoke").json
        assert not report["failures"]
        rows = {row["row"]: row["figures"] for row in report["rows"]}
        exact = ("top1", "top1 vs float", "loss", "loss vs float", "bytes", "oscillating", "flips")
        tables.append({row: {figure: own[figure] for figure in exact if figure in own} for row, own in rows.items()})
        assert all({"top1", "loss"} <= own.keys() for own in tables[-1].values())
    assert json.dumps(tables[0], sort_keys=True) == json.dumps(tables[1], sort_keys=True)
