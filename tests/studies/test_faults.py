"""What is wrong with a study, a folder or an option is one line, said before anything runs or is written."""

import json

import pytest

from ofqctl.studies.predictions import read_predictions
from tests.studies.conftest import FIGURES

SCORE = "python work.py a score"
TABLE = {"title": "t", "rows": ["row"], "figures": ["score"]}


def told(ended):
    """The one line, or two with the hint, that was told, without the paragraphs' breaks."""
    assert ended.out == ""
    assert "Traceback" not in ended.err
    return " ".join(ended.err.split())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rows": {"a": "evalute x"}}, "`ofqctl evalute x --json`: No such command 'evalute'"),
        ({"rows": {"a": "evaluate x --date y"}}, "No such option: --date"),
        ({"rows": {"a": "quantize x --recipe ptq/minmaks"}}, "recipe 'ptq/minmaks': no shipped recipe"),
        ({"rows": {"a": "python work2.py"}}, "`python work2.py`: no file 'work2.py' in"),
        ({"rows": {"a": "evaluate x --data {val}"}, "data": {"val": None, "calib": None}}, "hint: --data val=PATH"),
        ({"rows": {"a": "evaluate x --data {val}"}, "data": {"val": "nowhere"}}, "nowhere: no such file or folder"),
        (
            {"rows": {"a": {"command": SCORE, "measure": {"acuracy": ""}}}},
            "measure: nothing is called 'acuracy' hint: did you mean 'accuracy'?",
        ),
        ({"rows": {"a": "train {x}"}, "matrix": {"x": []}}, "study 'own': its matrix expands to no row"),
        ({"rows": {"a": "train {x}"}}, "rows.a.command: nothing is called 'x'"),
        ({"rows": {}}, "own.yaml: rows: Dictionary should have at least 1 item"),
        ({"rows": {"a b": SCORE}}, "own.yaml: rows.a b"),
        ({"rows": {"a": SCORE}, "tabels": []}, "own.yaml: tabels: Extra inputs are not permitted"),
        ({"rows": {"a": {"comand": SCORE}}}, "own.yaml: rows.a.command: Field required"),
        ({"rows": {"a": SCORE}, "tables": [TABLE]}, "study 'own': no figure is called 'score'"),
        (
            {"rows": {"a": SCORE}, "tables": [TABLE | {"figures": ["topp1"]}]},
            "no figure is called 'topp1' hint: did you mean 'top1'?",
        ),
        ({"rows": {"a": SCORE}, "plots": [{"title": "p", "x": "size", "y": "top1"}]}, "no figure is called 'size'"),
        (
            {"rows": {"a": SCORE}, "tables": [TABLE | {"figures": ["top1 vs b"]}]},
            "figure 'top1 vs b': nothing is compared with 'b'",
        ),
        (
            {"rows": {"a": SCORE}, "measure": {"paired": "row=b"}},
            "measure.paired: 'row=b' is no label of an axis; such as row=a",
        ),
        (
            {"rows": {"a": SCORE + " {x}"}, "matrix": {"x": [1, 2]}, "figures": FIGURES, "tables": [TABLE]},
            "'a x=1' and 'a x=2' fall on one cell",
        ),
        (
            {
                "rows": {"a": "train " + " ".join(f"{{x{n}}}" for n in range(9))},
                "matrix": {f"x{n}": [*range(9)] for n in range(9)},
            },
            "387420489 points; a study has at most 100000",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused_ahead(bench, values, said):
    bench.write(**values)
    ended = bench.do("run")
    assert ended.code == 1
    assert said in told(ended)
    assert not bench.output.exists()
    assert not bench.ran


def test_more_rows_than_allowed_are_said_with_about_how_long_they_take(bench):
    study = {"rows": {"a": {"command": "python work.py a{n} score", "minutes": 3}}}
    bench.write(**study, matrix={"n": [*range(1200)]})
    assert "study 'own': 1200 rows, and at most 1000 are run at once; about 60.0 hours" in told(bench.do("run"))
    assert not bench.output.exists()
    bench.write(**study, matrix={"n": [*range(6)]})
    assert bench.do("run", "--only", "*=0").code == 0
    assert "6 rows, and at most 5 are run at once; about 0.0 hours" in told(bench.do("run", "--most-rows", 5))
    assert bench.do("run", "--most-rows", 3, "--shard", "1/2").code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--shard", "3/2"], 2, "--shard 3/2: expected I/N"),
        (["--shard", "0/2"], 2, "--shard 0/2: expected I/N"),
        (["--shard", "half"], 2, "--shard half: expected I/N"),
        (["--jobs", "0"], 2, "--jobs"),
        (["--time-budget", "-1"], 2, "'--time-budget'"),
        (["--emit", "pbs"], 2, "'pbs' is not one of"),
        (["--data", "val"], 2, "--data val: expected NAME=VALUE"),
        (["--data", "vla=x"], 1, "--data vla: the study has no data of this name; it has val"),
        (["--data", "val=nowhere"], 1, "nowhere: no such file or folder"),
        (["--model", "vat=x"], 1, "--model vat: the study has no model of this name that it does not make; it has vit"),
        (
            ["--model", "made=x"],
            1,
            "--model made: the study has no model of this name that it does not make; it has vit",
        ),
        (["--only", "b*"], 1, "--only b*: no row is called so hint: such as 'a'"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(bench, words, code, said):
    models = {"vit": "x", "made": {"make": "train {vit}"}}
    bench.write(rows={"a": SCORE + " {val}"}, data={"val": "work.py"}, models=models)
    ended = bench.do("run", *words)
    assert ended.code == code
    assert said in told(ended).replace("│ ", "")
    assert not bench.output.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rows: [", "own.yaml: not valid YAML"),
        ("- a", "own.yaml: Input should be"),
        ("", "own.yaml: Input should be"),
        ("a: 1\na: 2", "'a' stands twice: lines 1, 2"),
        ("description: d\nrows: {a: {command: x}}\nformat: \x00", "own.yaml: not valid YAML"),
        ("[" * 200, "own.yaml: not valid YAML: nested too deeply"),
    ],
)
def test_a_file_that_is_no_study_is_refused(bench, text, said):
    (bench.folder / "own.yaml").write_text(text)
    assert said in told(bench.do("run"))
    assert not bench.output.exists()


@pytest.mark.parametrize("study", ["nothing.yaml", "smok", "empty"])
def test_a_study_that_is_not_there_is_said(bench, study):
    (bench.folder / "empty").mkdir()
    ended = bench.do("run", study=study)
    assert ended.code == 1
    assert study in told(ended)


def test_the_folder_of_another_study_or_of_something_else_is_refused(bench):
    bench.write(rows={"a": SCORE})
    bench.write("other", rows={"a": SCORE})
    bench.do("run", study="other.yaml")
    before = bench.files()
    for command in ("run", "status", "report"):
        assert "out: is the folder of the study 'other', not of 'own'" in told(bench.do(command))
    assert bench.files() == before
    bench.output = bench.folder / "photos"
    bench.output.mkdir()
    (bench.output / "1.png").touch()
    for command in ("run", "status", "report"):
        assert "photos: is no study's folder, and not empty" in told(bench.do(command))
    assert bench.files() == {"1.png"}


def test_a_report_of_what_was_not_run_says_so(bench):
    bench.write(rows={"a": SCORE})
    assert "out: no study was run there hint: `ofqctl study run` runs one" in told(bench.do("report"))


@pytest.fixture
def done(bench):
    """A study that was run, with what the only row said of images."""
    script = "import json, sys; open(sys.argv[1], 'w').write('image,right,loss\\na,1,0.5\\nb,0,1.5\\n'); "
    (bench.folder / "say.py").write_text(script + "print(json.dumps({'figures': {'top1': 50.0, 'score': 1.0}}))")
    bench.write(rows={"a": "python say.py {predictions}"}, figures=FIGURES, measure={"accuracy": ""})
    assert bench.do("run").code == 0
    return bench


def test_a_damaged_record_is_none_and_its_step_runs_again(done):
    (path,) = done.records()
    for text in ("", "{", "[]", '{"key": 1}', path.read_text()[:-20]):
        path.write_text(text)
        assert done.states() == {"a": "missing"}
        assert done.do("run").code == 0
        assert done.states() == {"a": "done"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("study.json", "{"),
        ("study.json", "[]"),
        ("study.json", '{"format": 2}'),
        ("steps/*/document.json", "{"),
        ("steps/*/document.json", "[1]"),
        ("steps/*/document.json", '{"figures": {"score": "x"}}'),
        ("steps/*/document.json", '{"figures": [1]}'),
        ("steps/*/predictions.csv", "image,right,loss\na,yes,0.5\n"),
        ("steps/*/predictions.csv", "image,right,loss\na,1\n"),
        ("steps/*/predictions.csv", "right,loss\n1,0.5\n"),
        ("steps/*/predictions.csv", "image,right,loss\n\x00"),
    ],
)
def test_a_damaged_file_is_named_by_the_report(done, name, text):
    (path,) = done.output.glob(name)
    path.write_text(text)
    ended = done.do("report")
    assert ended.code == 1
    assert path.name in told(ended)
    assert len(ended.err.strip().splitlines()) <= 2


def test_a_damaged_cache_of_digests_only_costs_time(done):
    for text in ("{", "[]", '{"a": 1}', '{"a": [1, 2, 3]}'):
        (done.output / "digests.json").write_text(text)
        assert done.do("run").code == 0
        assert json.loads((done.output / "digests.json").read_text()) == {}


def test_losses_that_are_no_numbers_are_no_figures(done):
    (path,) = done.output.glob("steps/*/predictions.csv")
    path.write_text("image,right,loss\na,1,nan\nb,0,inf\n")
    assert read_predictions(path).values.keys() == {"top1"}
    assert done.do("report", "--json").json["rows"][0]["figures"]["top1"]["mean"] == 50.0


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"command": "study report"}'])
def test_a_kept_report_that_is_damaged_is_named(done, text):
    (done.folder / "kept.json").write_text(text)
    assert "kept.json" in told(done.ofqctl("study", "report", "kept.json"))


def test_a_kept_report_is_shown_as_it_is_and_nothing_else_is_asked_of_it(done):
    (done.folder / "kept.json").write_text(done.do("report", "--json").out)
    assert done.ofqctl("study", "report", "kept.json").code == 0
    for option in (("--only", "x"), ("--data", "a=b"), ("--output", "c")):
        assert f"{option[0]}: kept.json is a report already" in told(
            done.ofqctl("study", "report", "kept.json", *option)
        )


def test_images_of_a_copy_elsewhere_are_the_same(tmp_path):
    for name in ("here", "there"):
        rows = "".join(f"/data/{name}/{image},1,0.5\n" for image in ("a/1.png", "b/1.png"))
        (tmp_path / name).write_text(f"image,right,loss\n{rows}")
    here, there = (read_predictions(tmp_path / name) for name in ("here", "there"))
    assert here.images == there.images == ("a/1.png", "b/1.png")
