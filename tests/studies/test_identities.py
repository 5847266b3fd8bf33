"""What makes a step another step, and what does not."""

import os
import shutil

import pytest
import yaml

from ofqctl.errors import DataError
from ofqctl.studies import content, steps
from ofqctl.studies.content import Digests
from ofqctl.studies.definition import Study
from ofqctl.studies.rows import rows_of
from ofqctl.studies.steps import Identities

STUDY = """
name: s
description: d
data: {calib: ~, val: ~}
models:
  float:
    make: train x --recipe own.yaml --data {calib}
matrix: {width: {W4: --wbits 4}}
rows:
  a: {command: "quantize {float} {width} --calib-data {calib}", measure: {accuracy: "--data {val}"}}
"""


@pytest.fixture
def here(tmp_path):
    """A folder with data, a recipe, a script and another file."""
    for name in ("calib", "val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"12345")
    for name in ("own.yaml", "run.py", "weights.bin"):
        (tmp_path / name).write_text("one", encoding="utf-8")
    return tmp_path


def keys(folder, study=STUDY, loose=False):
    """Identities of all steps of the first row."""
    values = yaml.safe_load(study) if isinstance(study, str) else study
    places = {name: str(folder / name) for name in ("calib", "val")}
    identities = Identities(places, folder, Digests())
    row = rows_of(Study.model_validate({"name": "s", "description": "d", **values}))[0]
    return [getattr(identities.of(step), "loose" if loose else "key") for step in row.steps]


def of_command(folder, command, **row):
    return keys(folder, {"rows": {"a": {"command": command, **row}}})


def test_order_and_names_do_not_matter(here):
    reordered = yaml.safe_load(STUDY)
    reordered = dict(sorted(reordered.items(), reverse=True))
    renamed = yaml.safe_load(
        STUDY.replace("width", "depth").replace("W4:", "four:").replace("float", "start").replace(" a:", " b:")
    )
    assert keys(here) == keys(here, reordered) == keys(here, renamed)


def test_a_word_makes_another_step_of_all_that_need_it(here):
    changed = keys(here, STUDY.replace("--wbits 4", "--wbits 5"))
    assert [a == b for a, b in zip(keys(here), changed, strict=True)] == [True, False, False]


@pytest.mark.parametrize(("name", "same"), [("calib", [False, False, False]), ("val", [True, True, False])])
def test_other_contents_of_data_of_the_same_size_and_names_make_other_steps_of_those_that_need_it(here, name, same):
    before, loose = keys(here), keys(here, loose=True)
    (here / name / "1.png").write_bytes(b"54321")
    assert [a == b for a, b in zip(before, keys(here), strict=True)] == same
    assert keys(here, loose=True) == loose


def test_another_name_of_an_image_is_other_data(here):
    before = keys(here)
    (here / "val" / "1.png").rename(here / "val" / "2.png")
    assert keys(here) != before


def test_the_time_of_a_change_and_the_place_of_data_do_not_matter(here, tmp_path_factory):
    before = keys(here)
    os.utime(here / "val" / "1.png", (1, 1))
    assert keys(here) == before
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(here, elsewhere)
    assert keys(elsewhere) == before


def test_the_text_of_a_recipe_matters_in_either_form_of_the_option(here):
    for option in ("--recipe own.yaml", "--recipe=own.yaml"):
        (here / "own.yaml").write_text("one")
        before = of_command(here, f"quantize x {option}")
        (here / "own.yaml").write_text("two")
        assert of_command(here, f"quantize x {option}") != before


def test_the_text_of_a_shipped_recipe_matters(here, monkeypatch):
    before = of_command(here, "quantize x --recipe ptq/minmax")
    monkeypatch.setattr(steps, "of_recipe", lambda name, folder: f"other text of {name}")
    assert of_command(here, "quantize x --recipe ptq/minmax") != before


@pytest.mark.parametrize(
    "command", ["python run.py a", "evaluate weights.bin", "evaluate ./weights.bin", "evaluate local-dir:val"]
)
def test_contents_of_scripts_and_of_files_and_folders_that_a_command_names_matter(here, command):
    before = of_command(here, command)
    assert of_command(here, command) == before
    for path in (here / "run.py", here / "weights.bin", here / "val" / "1.png"):
        path.write_text("three")
    assert of_command(here, command) != before


def test_the_content_of_a_script_without_a_suffix_matters(here):
    (here / "run").write_text("one")
    before = of_command(here, "python run")
    (here / "run").write_text("two")
    assert of_command(here, "python run") != before


def test_what_starts_a_command_matters_and_what_it_needs_does_not(here):
    plain = of_command(here, "train x")
    assert of_command(here, "train x", launcher="torchrun --nproc-per-node 2") != plain
    assert of_command(here, "train x", launcher="", needs=["openvino"], minutes=3) == plain


def test_the_code_that_computes_matters_but_not_to_what_a_step_is_loosely(here, monkeypatch):
    before, loose = keys(here), keys(here, loose=True)
    monkeypatch.setattr(steps, "of_code", lambda: "other code")
    assert all(a != b for a, b in zip(keys(here), before, strict=True))
    assert keys(here, loose=True) == loose


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in place of the program's own."""
    (tmp_path / "quantizers").mkdir()
    (tmp_path / "studies").mkdir()
    (tmp_path / "jobs").mkdir()
    for name in ("quantizers/lsq.py", "studies/rows.py", "jobs/study.py", "jobs/quantize.py", "errors.py"):
        (tmp_path / name).write_text("pass")
    monkeypatch.setattr(content, "_PACKAGE", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "matters"),
    [
        ("quantizers/lsq.py", True),
        ("jobs/quantize.py", True),
        ("studies/rows.py", False),
        ("jobs/study.py", False),
        ("errors.py", False),
    ],
)
def test_the_code_is_what_computes_without_what_runs_studies_and_shows_them(package, name, matters):
    before = content.of_code.__wrapped__()
    (package / name).write_text("pass  # changed")
    assert (content.of_code.__wrapped__() != before) is matters


def test_contents_are_read_again_only_where_sizes_or_times_are_others(here, monkeypatch):
    known = Digests()
    digest = known.of(here / "val")
    monkeypatch.setattr(content, "content", lambda path, files: "read again")
    assert Digests(known.known).of(here / "val") == digest
    os.utime(here / "val" / "1.png", (1, 1))
    assert Digests(known.known).of(here / "val") == "read again"


def test_data_that_is_not_there_is_named(here):
    shutil.rmtree(here / "val")
    with pytest.raises(DataError, match=r"val: no such file or folder"):
        keys(here)
