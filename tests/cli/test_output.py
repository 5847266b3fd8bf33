import json

import pytest

from ofqctl.cli.output import Aside, Sink, Table, megabytes, print_table
from ofqctl.cli.sensitivity import _figures
from ofqctl.results.document import Document


class Measured(Document):
    loss: float = 0.0
    of: tuple[float, ...] = ()


def test_in_a_pipe_a_table_is_aligned_text_that_is_never_cut(capsys):
    table = Table(["name", ">count"], title="things")
    table.add("x" * 300, 1)
    table.add("y", 22)
    print_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "things"
    assert lines[2].endswith("x      1")
    assert lines[3].endswith("     22")


def on_a_terminal(monkeypatch, columns):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


WIDE = Table(["name", ">bits", "-shape", "->bytes", "why"])
WIDE.add("blocks.0.attn.qkv", 4, "192x48x3", 123456, "the runtime multiplies integers and nothing is left in float")


def test_on_a_terminal_columns_that_may_are_left_out_and_words_go_on_in_the_next_line(capsys, monkeypatch):
    on_a_terminal(monkeypatch, 60)
    print_table(WIDE)
    assert capsys.readouterr().out.splitlines() == [
        "name               bits  shape     why",
        "─────────────────  ────  ────────  ─────────────────────────",
        "blocks.0.attn.qkv     4  192x48x3  the runtime multiplies",
        "                                   integers and nothing is",
        "                                   left in float",
        "(for lack of room without: bytes)",
    ]


def test_where_no_table_fits_each_cell_has_a_line(capsys, monkeypatch):
    on_a_terminal(monkeypatch, 28)
    print_table(WIDE)
    assert capsys.readouterr().out.splitlines()[:5] == [
        "name   blocks.0.attn.qkv",
        "bits   4",
        "shape  192x48x3",
        "bytes  123456",
        "why    the runtime",
    ]


def test_a_table_has_no_markup(capsys, monkeypatch):
    on_a_terminal(monkeypatch, 60)
    table = Table(["name"])
    table.add("[red]file[/red]")
    print_table(table)
    assert "[red]file[/red]" in capsys.readouterr().out


def test_on_a_terminal_lines_end_between_words_below_the_text_and_commands_stay_whole(capsys, monkeypatch):
    on_a_terminal(monkeypatch, 60)
    with Sink(as_json=False) as sink:
        sink.show(
            Measured(),
            lambda _: [
                "measured  on 2000 images of imagenette/val; 10 classes by their names",
                "- a finding that is longer than a line of this terminal: 12 % of all",
                "accuracy  `ofqctl train deit_small --recipe ofq/vit_w2a2 --data DATA` brings it back",
                "  ofqctl evaluate runs/with/a/long/path/and/name --data imagenet/val",
                "key: value  # a document with lines of its own is nobody's prose\nother: 1",
            ],
        )
    assert capsys.readouterr().out.splitlines() == [
        "measured  on 2000 images of imagenette/val; 10 classes by",
        "          their names",
        "- a finding that is longer than a line of this terminal:",
        "  12 % of all",
        "accuracy  `ofqctl train deit_small --recipe ofq/vit_w2a2 --data DATA`",
        "          brings it back",
        "  ofqctl evaluate runs/with/a/long/path/and/name --data imagenet/val",
        "key: value  # a document with lines of its own is nobody's prose",
        "other: 1",
    ]


def test_json_is_one_document_without_nan(capsys):
    with Sink(as_json=True) as sink:
        sink.progress("work", 1, 2)
        sink.show(Measured(loss=float("nan"), of=(float("inf"), 1.5), notes=("beware",)), lambda _: ["text"])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"format": 1, "loss": None, "of": [None, 1.5], "notes": ["beware"]}
    assert "note: beware" in err


def test_without_a_terminal_progress_is_a_few_lines(capsys):
    with Sink(as_json=False) as sink:
        sink.progress("load", 0, None)
        for done in range(0, 1001):
            sink.progress("work", done, 1000)
    assert capsys.readouterr().err == "load\nwork 0/1000\nwork 1000/1000\n"


def test_on_a_terminal_progress_is_a_bar_that_goes_away(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Sink(as_json=False) as sink:
        sink.progress("load", 0, None)
        sink.progress("work", 1, 2)
        sink.show(Measured(), lambda _: ["done"])
    assert capsys.readouterr().out == "done\n"


@pytest.mark.parametrize(("count", "text"), [(0, "0.00 MB"), (5_500_000, "5.50 MB"), (22_880_000, "22.9 MB")])
def test_sizes_are_in_megabytes(count, text):
    assert megabytes(count) == text


def test_with_quiet_there_is_the_result_alone(capsys):
    with Sink(as_json=False, quiet=True) as sink:
        sink.progress("work", 0, 2)
        sink.show(Measured(notes=("beware",)), lambda _: ["done", Aside("Next:")])
    assert tuple(capsys.readouterr()) == ("done\n", "")


def test_with_verbose_each_part_of_the_work_tells_what_it_took(capsys):
    with Sink(as_json=False, verbose=True) as sink:
        sink.progress("load", 0, None)
        sink.progress("work", 0, 1)
        sink.progress("work", 1, 1)
        sink.show(Measured(), lambda _: ["done"])
    told = [line.partition(":")[0].partition(" ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == ["load", "load", "work", "work", "work", "in"]


def test_quiet_and_verbose_exclude_each_other(ofqctl):
    ended = ofqctl("recipe", "ls", "-q", "-v")
    assert ended.code == 2
    assert "only one of them can be given" in ended.err


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (2.7541, "2.8"), (12.3, "12"), (0.405, "0.41"), (0.00713, "0.0071"), (5.1e-5, "5.1e-05")],
)
def test_sensitivities_have_the_two_digits_that_count(value, text):
    assert _figures(value) == text
