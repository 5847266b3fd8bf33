"""Whatever names hold, and whatever happens to the streams: what is printed is safe, and no job ends as a bug."""

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from PIL import Image

from ofqctl.artifact import sign_config
from ofqctl.cli.output import Sink, Table
from ofqctl.cli.printing import say, say_json, visible
from ofqctl.cli.tables import print_table

HOSTILE = "\x1b]0;owned\x07\x1b[2Jcat\x9b31m\u202egnp\u2066\x7f\r\n\u2028end\udcff"


def test_characters_that_a_terminal_acts_on_are_escapes():
    seen = visible(HOSTILE)
    assert seen.isprintable()
    assert seen.startswith(r"\x1b]0;owned\x07\x1b[2Jcat\x9b31m\u202egnp\u2066\x7f\r\n\u2028end\udcff")


@pytest.mark.parametrize("text", ["κλάση", "猫", "a b\u00a0c", "👩\u200d🔬", "می\u200cخواهم", "±"])
def test_words_of_any_language_stay_as_they_are(text):
    assert visible(text) == text


def test_a_line_break_in_a_cell_is_an_escape_and_between_lines_one(capsys):
    table = Table(["name"])
    table.add("two\nlines")
    print_table(table)
    say("one\nother")
    assert capsys.readouterr().out == "name\ntwo\\nlines\none\nother\n"


def test_json_holds_the_very_names_and_nothing_that_acts(capsys):
    say_json({"name": HOSTILE, "κ": 1.5, "loss": float("nan")})
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert json.loads(out) == {"name": HOSTILE, "κ": 1.5, "loss": None}
    assert "κ" in out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_stream_of_any_encoding_takes_any_name(monkeypatch, encoding):
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding, errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", stream)
    say("a ± b κ 猫 \udcff")
    say_json({"a ± b": "κ 猫 \udcff"})
    stream.flush()
    text = content.getvalue().decode(encoding)
    assert text.startswith("a ± b" if encoding not in ("ascii",) else r"a \xb1 b")
    assert json.loads(text[text.index("{") :]) == {"a ± b": "κ 猫 \udcff"}


def test_there_is_nobody_to_tell_where_stderr_is_full():
    code = "from ofqctl.cli.printing import tell; tell('news'); print('done')"
    ended = subprocess.run(
        ["sh", "-c", f'{sys.executable} -c "{code}" 2>/dev/full'], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "done\n"


WORDS = [
    "blocks.0.attn.products",
    "attention",
    "softmax",
    "8",
    "uniform",
    "-128..127 +0.5..+12.25",
    "192x48x3",
    "12345",
]


def sent(columns, *arguments, **environment):
    """What Python with these arguments sends to a terminal of so many columns, as bytes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "LC_ALL", "LANG")}
    environment = inherited | {"TERM": "xterm"} | environment
    command = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        content = b""
        try:
            while part := os.read(ours, 4096):
                content += part
        except OSError:  # the other end was closed
            pass
        os.close(ours)
        told = process.stderr.read()
    assert process.returncode == 0, told
    return content


def drawn(columns, show):
    """What the code of ``show`` draws on a terminal of so many columns."""
    code = (
        "import sys; from ofqctl.cli.printing import prepare_streams; from ofqctl.cli.output import Table, print_table;"
        "prepare_streams();" + show
    )
    return sent(columns, "-c", code).decode()


NAMES = ["module", "kind", ">tensor", ">bits", "method", "grid", "shape", ">bytes"]


@pytest.mark.parametrize("columns", [40, 80, 100])
@pytest.mark.parametrize("name", ["\x1b]0;owned\x07\x1b[2J", HOSTILE, "a class with a long name, its words short"])
def test_on_a_terminal_no_word_is_broken_and_no_escape_of_a_name_passes(name, columns):
    show = f"t = Table({NAMES}, title='things'); t.add(*{WORDS}); t.add({name!r}, *['猫'] * 7); print_table(t)"
    text = drawn(columns, show)
    assert "\x1b" not in text
    assert "\x9b" not in text
    words = text.replace("│", " ").replace("┃", " ").split()
    for word in " ".join([*WORDS, visible(name), *(name.lstrip(">") for name in NAMES)]).split():
        assert word in words
    longest = len(visible(name)) if " " not in name else 0
    assert max(map(len, text.splitlines())) <= max(columns, len("module  ") + longest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "columns", "cat"), [("ascii", 40, r"\u732b"), ("latin-1", 80, r"\u732b"), ("utf-8", 100, "猫")]
)
def test_a_command_shows_hostile_labels_in_any_locale_on_any_terminal(run, encoding, columns, cat):
    names = [HOSTILE, "猫", "\x1b]0;owned\x07\x1b[2J", *(f"digit±{number}" for number in range(7))]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"label_names": names}))
    sign_config(run)
    Image.new("RGB", (32, 32)).save(run.parent / "a.png")
    asked = ("-m", "ofqctl", "predict", run, run.parent / "a.png", "--top", 10)
    content = sent(columns, *asked, PYTHONIOENCODING=encoding, PYTHONUTF8="0", LC_ALL="C")
    text = content.decode(encoding)
    assert not {character for character in text if not character.isprintable()} - set("\r\n")
    for word in (cat, visible(HOSTILE), r"\x1b]0;owned\x07\x1b[2J"):
        assert word.encode(encoding, "backslashreplace").decode(encoding) in text.split()


@pytest.mark.parametrize("target", ["/dev/full", None])
def test_a_result_that_cannot_be_printed_is_one_line_and_exit_1(target):
    shell = f"{sys.executable} -m ofqctl recipe ls {'>' + target if target else '>&-'}"
    ended = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1
    assert ended.stderr.startswith("error: stdout: ")


def test_progress_shows_names_as_they_are(capsys):
    with Sink(as_json=False) as sink:
        sink.progress(f"read {HOSTILE}", 0, None)
    assert "\x1b" not in capsys.readouterr().err
