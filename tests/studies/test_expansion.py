"""Which rows a study has, and which words their commands are."""

import pytest

from ofqctl.errors import StudyError
from ofqctl.studies.definition import Study
from ofqctl.studies.rows import rows_of
from ofqctl.studies.steps import Data, Output, Step


def rows(**values):
    command = values.pop("command", None)
    defined = values.pop("rows", None) or {"a": {"command": command}}
    return rows_of(Study.model_validate({"name": "s", "description": "d", "rows": defined, **values}))


def written(step):
    """The words of a step, with what its pieces are."""

    def text(piece):
        if isinstance(piece, Step):
            return f"<{' '.join(written(piece))}>"
        return f"[{piece.name}]" if isinstance(piece, Data | Output) else piece

    return ["".join(map(text, word)) for word in step.words]


def commands(**values):
    return {row.name: written(row.step) for row in rows(**values)}


def test_a_row_has_a_point_for_each_axis_that_its_command_names_in_the_order_of_the_matrix():
    matrix = {"bits": {"W8": "--wbits 8", "W4": "--wbits 4"}, "unused": [1, 2], "seed": [0, 1]}
    found = commands(command="quantize vit --seed {seed} {bits}", matrix=matrix)
    assert list(found) == ["a bits=W8 seed=0", "a bits=W8 seed=1", "a bits=W4 seed=0", "a bits=W4 seed=1"]
    assert found["a bits=W4 seed=1"] == ["quantize", "vit", "--seed", "1", "--wbits", "4"]


def test_axes_that_only_measures_name_are_axes_of_the_row_and_make_its_command_once():
    found = rows(
        command="quantize vit",
        measure={"accuracy": "--data {val} --batch-size {n}"},
        data={"val": "v"},
        matrix={"n": [1, 2]},
    )
    assert [row.name for row in found] == ["a n=1", "a n=2"]
    assert found[0].step == found[1].step
    assert written(found[1].measured["accuracy"]) == [
        "evaluate",
        "<quantize vit>",
        "--data",
        "[val]",
        "--batch-size",
        "2",
    ]


def test_axes_in_models_and_in_models_of_models_are_axes_of_the_row():
    models = {
        "base": "{size}_vit",
        "float": {"make": "train {base} --seed {seed}"},
        "start": {"make": "quantize {float}"},
    }
    matrix = {"size": ["tiny", "small"], "seed": [0, 1]}
    found = commands(command="evaluate {start}", models=models, matrix=matrix)
    assert len(found) == 4
    assert found["a size=small seed=1"] == ["evaluate", "<quantize <train small_vit --seed 1>>"]


def test_models_in_the_texts_of_an_axis_are_found_with_their_own_axes():
    models = {"plain": "vit_{size}", "made": {"make": "train vit_{size} --seed {seed}"}}
    matrix = {"model": {"p": "{plain}", "m": "{made} --teacher={plain}"}, "size": ["t"], "seed": [0]}
    found = commands(command="evaluate {model}", models=models, matrix=matrix)
    assert found == {
        "a model=p size=t seed=0": ["evaluate", "vit_t"],
        "a model=m size=t seed=0": ["evaluate", "<train vit_t --seed 0>", "--teacher=vit_t"],
    }


@pytest.mark.parametrize("model", ["{size}_vit", {"make": "train {size}_vit"}, {"make": "train {other}"}])
def test_a_model_that_is_made_of_itself_is_refused(model):
    with pytest.raises(ValueError, match="made with 'size' itself"):
        commands(
            command="evaluate {m} {size}",
            models={"other": "x{size}", "m": model},
            matrix={"size": {"a": "{m}", "b": "{m}"}},
        )


def test_points_are_excluded_by_any_of_their_labels_and_by_rows():
    defined = {"a": {"command": "quantize {b} --seed {seed}"}, "c": {"command": "quantize x --seed {seed}"}}
    exclude = [{"b": ["v", "w"], "seed": 1}, {"row": "c", "seed": [0]}]
    found = commands(rows=defined, matrix={"b": ["u", "v", "w"], "seed": [0, 1]}, exclude=exclude)
    assert list(found) == ["a b=u seed=0", "a b=u seed=1", "a b=v seed=0", "a b=w seed=0", "c seed=1"]


def test_a_row_takes_its_own_axis_in_place_of_the_studys():
    defined = {
        "a": {"command": "quantize x --seed {seed}"},
        "b": {"command": "quantize x --seed {seed}", "matrix": {"seed": [7]}},
    }
    assert list(commands(rows=defined, matrix={"seed": [0, 1]})) == ["a seed=0", "a seed=1", "b seed=7"]


def test_a_row_measures_what_it_says_itself_and_else_what_the_study_says():
    defined = {
        "a": {"command": "quantize x"},
        "b": {"command": "quantize y", "measure": {"size": ""}},
        "c": {"command": "quantize z", "measure": {}},
    }
    found = {
        row.name: set(row.measured)
        for row in rows(rows=defined, measure={"accuracy": "--data digits", "paired": "row=a"})
    }
    assert found == {"a": {"accuracy"}, "b": {"size"}, "c": set()}


def test_braces_that_are_no_placeholders_stay():
    found = commands(command="""train x --set 'ptq=[{stage: x}]' 'freezing={start: 0.1, end: 0.01}' {} {0}""")
    assert found["a"] == ["train", "x", "--set", "ptq=[{stage: x}]", "freezing={start: 0.1, end: 0.01}", "{}", "{0}"]


def test_quotes_and_blanks_are_those_of_a_shell():
    found = commands(
        command="""evaluate "a b" 'c {d}' e\\ f '' {texts}""", matrix={"d": ["x y"], "texts": {"t": "'g h' i"}}
    )
    assert found["a d=x y texts=t"] == ["evaluate", "a b", "c x y", "e f", "", "g h", "i"]


def test_data_is_one_word_or_a_part_of_one():
    found = commands(command="evaluate x --data {val} --index=hfds/{val}/b", data={"val": "a b"})
    assert found["a"] == ["evaluate", "x", "--data", "[val]", "--index=hfds/[val]/b"]


def test_labels_are_as_a_command_line_has_them():
    assert list(commands(command="train {x}", matrix={"x": [1, 0.5, True, None, "1e-4"]})) == [
        "a x=1",
        "a x=0.5",
        "a x=true",
        "a x=",
        "a x=1e-4",
    ]


def test_what_rows_share_is_one_step():
    found = rows(
        command="quantize {float} --seed {seed}", models={"float": {"make": "train x"}}, matrix={"seed": [0, 1]}
    )
    first, second = (row.steps for row in found)
    assert first[0] == second[0]
    assert [written(step) for step in first] == [["train", "x"], ["quantize", "<train x>", "--seed", "0"]]


def test_a_script_may_write_a_model_that_is_measured_and_may_have_any_options():
    (row,) = rows(command="python make.py --output {output} -v", measure={"accuracy": "--data digits", "size": ""})
    assert written(row.step) == ["python", "make.py", "--output", "[model.onnx]", "-v"]
    assert written(row.measured["accuracy"])[:2] == ["evaluate", "<python make.py --output [model.onnx] -v>"]


def test_of_a_script_that_makes_no_model_its_own_document_is_read():
    (row,) = rows(command="python say.py", measure={"accuracy": "--data digits"})
    assert row.measured["accuracy"] == row.step


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"command": "quantize x --seed {seed}", "matrix": {"seed": []}}, "expands to no row"),
        ({"command": "quantize {b}", "matrix": {"b": [1]}, "exclude": [{"b": 1}]}, "expands to no row"),
        ({"command": "evaluate 'x"}, "evaluate 'x.*no command line: No closing quotation"),
        ({"command": ""}, "begins with no command"),
        ({"command": "{float} x", "models": {"float": {"make": "train x"}}}, "begins with no command"),
        ({"command": "quantize x --output y"}, "--output is what a study sets itself"),
        ({"command": "quantize x --output=y"}, "--output=y is what a study sets itself"),
        ({"command": "train x", "measure": {"accurcy": ""}}, "measure: nothing is called 'accurcy'"),
        ({"command": "inspect x", "measure": {"accuracy": ""}}, "`inspect` makes no model to measure"),
        ({"command": "evaluate {m}", "models": {"m": {"make": "inspect x"}}}, "models.m: `inspect` makes no model"),
    ],
)
def test_what_is_no_study_is_said_in_one_line(values, said):
    with pytest.raises(StudyError, match=said) as raised:
        rows(**values)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"command": "evaluate {flot}", "models": {"float": "x"}}, "nothing is called 'flot'; did you mean 'float'"),
        (
            {"command": "evaluate x", "measure": {"accuracy": "--data {vall}"}, "data": {"val": "x"}},
            "nothing is called 'vall'",
        ),
        ({"command": "evaluate {m}", "models": {"m": {"make": "train {n}"}, "n": "x"}}, "nothing is called 'n'"),
        ({"command": "x", "matrix": {"a": {"l": "{b}"}, "b": [1]}}, "matrix.a: nothing is called 'b'"),
        ({"command": "x", "data": {"a": "x"}, "models": {"a": "y"}}, "data and models: both have the name 'a'"),
        ({"command": "x", "models": {"a": "y"}, "matrix": {"a": [1]}}, "models and matrix: both have the name 'a'"),
        ({"command": "x", "matrix": {"row": [1]}}, "'row' is the axis of the rows' names"),
        ({"command": "x {b}", "matrix": {"b": ["W4"]}, "exclude": [{"b": "W5"}]}, "exclude.0.b: no 'W5'"),
        ({"command": "x", "matrix": {"b": ["W4"]}, "exclude": [{"b": "W4"}]}, "no row has an axis 'b'"),
        (
            {"command": "x", "tables": [{"title": "t", "rows": ["bits"], "figures": ["top1"]}]},
            "tables.0: no row has an axis 'bits'",
        ),
        (
            {"command": "x", "tables": [{"title": "t", "rows": ["row"], "figures": ["top1"], "where": {"row": "b"}}]},
            "tables.0.where.row: no 'b'",
        ),
        (
            {"command": "x", "plots": [{"title": "t", "x": "bytes", "y": "top1", "by": "bits"}]},
            "plots.0.by: no row has an axis",
        ),
        (
            {
                "command": "x",
                "claims": [{"name": "c", "paper": "p", "says": "s", "figure": "top1", "order": ["a", "b"]}],
            },
            "claims.0.order.row: no 'b'",
        ),
    ],
)
def test_unknown_names_axes_and_labels_are_named(values, said):
    with pytest.raises(ValueError, match=said):
        rows(**values)
