"""Write docs/cli.md from the program's own commands; ``--check`` only says whether it is up to date."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from generating import keep
from typer.main import get_command

from ofqctl.cli.app import app

PAGE = Path(__file__).resolve().parent / "cli.md"

INTRODUCTION = """\
# Command line

Generated from the program by `docs/generate_cli.py`.

The result goes to stdout: tables for people, or one JSON document with `--json`. Progress, notes and errors go to
stderr; with `--json` an error is a document too, [schemas/failure.json](schemas/failure.json): `{"error": {"kind",
"message", "hint"}}`. `--set` and `--model-kwargs` take several `k=v` values after one flag.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | an error that the user can fix: the message says what is wrong, the hint how to fix it |
| 2 | wrong usage |
| 70 | a bug, with its traceback; `OFQCTL_DEBUG=1` shows the traceback of every error |
| 130 | interrupted; nothing was written |
"""


def page() -> str:
    """The text of docs/cli.md."""
    return "\n".join([INTRODUCTION, *_commands(get_command(app), "ofqctl")]).rstrip() + "\n"


def _commands(command: Any, name: str) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield from _command(command, name)
        return
    for word, child in inner.items():
        yield from _commands(child, f"{name} {word}")


def _command(command: Any, name: str) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    usage = " ".join([name, *(p.metavar if p.required else f"[{p.metavar}]" for p in arguments), "[OPTIONS]"])
    yield f"## {name}\n\n{command.help}\n\n```\n{usage}\n```\n"
    examples = [line for line in (command.epilog or "").split("\n\n") if line.startswith("ofqctl")]
    if examples:
        yield "Examples:\n\n```\n" + "\n".join(examples) + "\n```\n"
    yield "| argument or option | default | meaning |\n|---|---|---|"
    for parameter in arguments:
        yield _row(parameter.metavar, "", parameter.help)
    for option in options:
        value = "" if option.is_flag else f" {option.metavar}"
        default = "" if option.default is None or option.default is False else option.default
        yield _row(f"{', '.join(option.opts)}{value}", "required" if option.required else default, option.help)
    yield ""


def _row(name: str, default: object, meaning: str | None) -> str:
    shown = f"`{default}`" if default not in ("", "required") else str(default)
    cells = (f"`{name.strip()}`", shown, meaning or "")
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    """Write the page, or check it."""
    return keep({PAGE: page()}, [], __file__)


if __name__ == "__main__":
    sys.exit(main())
