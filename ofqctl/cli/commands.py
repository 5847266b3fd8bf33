"""How every command comes into the program: with examples, and its groups of options as options."""

from collections.abc import Callable

import typer

from ofqctl.cli.groups import expanded


def examples(*lines: str) -> str:
    """The epilog of a command with examples, one on each line."""
    return "\n\n".join(("Examples:", *lines))


def command(app: typer.Typer, name: str, *lines: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of a program, with these examples."""

    def added(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name, epilog=examples(*lines))(expanded(function))
        return function

    return added
