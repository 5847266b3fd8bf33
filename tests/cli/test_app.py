import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from ofqctl import __version__
from ofqctl.cli.app import app, main
from ofqctl.cli.output import Sink
from ofqctl.errors import DataError

from .conftest import quantize_tiny

ROOT = Path(__file__).resolve().parents[2]


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [["--help"], ["recipe", "ls"], ["--version"], ["quantize", "--help"]])
def test_light_commands_do_not_import_torch(arguments):
    ended = python(
        f"import sys; from ofqctl.cli.app import main; code = main({arguments!r})\n"
        "heavy = {'torch', 'timm', 'numpy'} & set(sys.modules); assert not heavy, heavy; sys.exit(code)"
    )
    assert ended.returncode == 0, ended.stderr


def cpu_seconds(*arguments):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["recipe", "ls"]])
def test_light_commands_take_little_more_than_the_import_of_their_libraries(arguments):
    libraries = "import typer, rich.console, rich.table, pydantic, yaml"
    turns = [(cpu_seconds("-m", "ofqctl", *arguments), cpu_seconds("-c", libraries)) for _ in range(5)]
    command, bare = (statistics.median(side) for side in zip(*turns, strict=True))
    assert command < 3 * bare


def commands(command=None, name="ofqctl"):
    command = command or get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        return {name: command}
    return {n: c for word, child in inner.items() for n, c in commands(child, f"{name} {word}").items()}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_json_and_examples_of_itself(name):
    command = commands()[name]
    assert any("--json" in parameter.opts for parameter in command.params)
    examples = command.epilog.split("\n\n")[1:]
    assert examples
    assert all(example.startswith(name) for example in examples)


def test_the_page_of_the_command_line_is_up_to_date():
    script = [sys.executable, str(ROOT / "docs" / "generate_cli.py"), "--check"]
    ended = subprocess.run(script, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_the_version_is_printed(ofqctl):
    ended = ofqctl("--version")
    assert (ended.code, ended.out) == (0, f"ofqctl {__version__}\n")


@pytest.mark.parametrize("arguments", [["nosuch"], ["quantize"], ["quantize", "m", "--nosuch"]])
def test_wrong_usage_ends_with_2(ofqctl, arguments):
    ended = ofqctl(*arguments)
    assert ended.code == 2
    assert ended.out == ""


def test_an_error_is_one_message_and_a_hint_on_stderr(ofqctl):
    ended = ofqctl("recipe", "show", "ptq/mmse")
    assert ended.code == 1
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1] == "hint: did you mean 'ptq/mse'?"


def failing(error):
    def fail(*_args, **_kwargs):
        raise error

    return fail


@pytest.mark.parametrize(
    ("arguments", "error", "code", "kind", "message", "hint"),
    [
        (
            ("show", "ptq/mmse"),
            None,
            1,
            "recipe",
            "recipe 'ptq/mmse': no shipped recipe of this name, and no such file",
            "did you mean 'ptq/mse'?",
        ),
        (("show",), None, 2, "usage", "Missing argument 'NAME|FILE'.", None),
        (("ls", "--nosuch"), None, 2, "usage", "No such option: --nosuch", None),
        (("ls",), ZeroDivisionError("oh"), 70, "bug", "ZeroDivisionError: oh", None),
        (("ls",), KeyboardInterrupt(), 130, "interruption", "interrupted; nothing was written", None),
        (("ls",), DataError("no images", hint="--data D"), 1, "data", "no images", "--data D"),
    ],
)
def test_with_json_a_failure_is_one_document(ofqctl, monkeypatch, arguments, error, code, kind, message, hint):
    if error is not None:
        monkeypatch.setattr(Sink, "show", failing(error))
    ended = ofqctl("recipe", *arguments, "--json")
    assert ended.code == code
    assert ended.json == {"format": 1, "error": {"kind": kind, "message": message, "hint": hint}}
    assert message in " ".join(ended.err.split()) or kind == "usage"


def test_debug_shows_the_traceback_of_an_error_too(ofqctl, monkeypatch):
    monkeypatch.setenv("OFQCTL_DEBUG", "1")
    ended = ofqctl("recipe", "show", "nosuch")
    assert ended.code == 1
    assert "Traceback" in ended.err


def test_a_bug_keeps_its_traceback_and_says_what_it_is(ofqctl, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(Sink, "show", broken)
    ended = ofqctl("recipe", "ls")
    assert ended.code == 70
    assert "ZeroDivisionError: oh" in ended.err
    assert "this is a bug" in ended.err


def test_ctrl_c_is_told_and_ends_with_130(ofqctl, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Sink, "show", interrupted)
    ended = ofqctl("recipe", "ls")
    assert ended.code == 130
    assert "interrupted; nothing was written" in ended.err


def test_a_reader_that_goes_away_is_no_error():
    shell = f"{sys.executable} -m ofqctl recipe show ofq/vit_w2a2 | true"
    ended = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=False)
    assert ended.stderr == ""


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_nothing_behind(tmp_path):
    typed = [str(a) for a in quantize_tiny("--output", tmp_path / "runs" / "a")]
    typed[typed.index("calibration.images=8")] = "calibration.images=100000"
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore and inherit it
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "ofqctl", *typed], stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    finally:
        signal.signal(signal.SIGINT, ours)
    assert process.stderr is not None
    assert process.stderr.readline() == "load the model\n"
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted; nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_without_arguments_the_help_is_shown(capsys):
    assert main([]) in (0, 2)
    assert "quantize" in "".join(capsys.readouterr())


def test_the_doctor_shows_versions_the_machine_and_what_is_missing(ofqctl, monkeypatch):
    monkeypatch.setattr("ofqctl.jobs.doctor.has_vnni", lambda: False)
    ended = ofqctl("doctor")
    assert ended.code == 0
    shown = dict(line.split(None, 1) for line in ended.out.splitlines() if len(line.split()) > 1)
    assert shown["ofqctl"] == __version__
    assert "VNNI: no" in shown["CPU"]
    assert "8 bits gain less speed" in shown["VNNI"]
    assert ofqctl("doctor", "--json").json["machine"]["vnni"] is False
