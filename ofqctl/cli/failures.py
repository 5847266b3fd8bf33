"""What a command that fails tells: lines for people on stderr, and with ``--json`` one document on stdout."""

import os
import signal
import traceback
from collections.abc import Callable

from ofqctl.cli.printing import give_up_stdout, prints, say_json, tell, tell_prose
from ofqctl.errors import OfqctlError, OutputError, disk_fault
from ofqctl.results.failure import Failure, FailureDocument

FAULT, USAGE, BUG = 1, 2, 70


class InterruptionError(Exception):
    """A signal ended the command.

    Args:
        message: What is left.
        signum: The signal.
    """

    def __init__(self, message: str = "interrupted; nothing was written", signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.code = 128 + signum


def failed(error: Exception, *, as_json: bool) -> int:
    """Tell why a command failed, and return the exit code."""
    if not isinstance(error, OfqctlError) and (fault := disk_fault(error)) is not None:
        error = OutputError(f"a file cannot be read or written: {fault}")
    if isinstance(error, BrokenPipeError | OutputError):
        give_up_stdout()
    if isinstance(error, BrokenPipeError):  # a reader that goes away, as `head` does, is no news
        return FAULT
    if isinstance(error, InterruptionError):
        tell(f"\n{error}")
        return _document(error.code, "interruption", str(error), as_json=as_json)
    if not isinstance(error, OfqctlError) or os.environ.get("OFQCTL_DEBUG") == "1":
        tell("".join(traceback.format_exception(error)))
    if not isinstance(error, OfqctlError):
        tell("ofqctl: this is a bug; please report it with the lines above")
        return _document(BUG, "bug", f"{type(error).__name__}: {error}", as_json=as_json)
    tell_prose(f"error: {error.message}")
    if error.hint:
        tell_prose(f"hint: {error.hint}")
    kind = type(error).__name__.removesuffix("Error").lower()
    return _document(FAULT, kind, error.message, error.hint, as_json=as_json and kind != "output")


def misused(error: BaseException | None, *, as_json: bool) -> int:
    """The same for wrong usage, of which typer has told already."""
    describe: Callable[[], str] = getattr(error, "format_message", lambda: "wrong usage")
    return _document(USAGE, "usage", describe(), as_json=as_json)


def _document(code: int, kind: str, message: str, hint: str | None = None, *, as_json: bool) -> int:
    if as_json and prints():
        try:
            say_json(FailureDocument(error=Failure(kind=kind, message=message, hint=hint)).model_dump())
        except (OutputError, BrokenPipeError):  # stderr has told
            give_up_stdout()
    return code
