import json

import pytest

from ofqctl.cli.output import Sink, Table, megabytes, print_table
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


def test_on_a_terminal_a_table_has_a_frame_and_no_markup(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    table = Table(["name"])
    table.add("[red]file[/red]")
    print_table(table)
    out = capsys.readouterr().out
    assert "[red]file[/red]" in out
    assert "│" in out


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
