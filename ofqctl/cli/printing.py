"""The one place that writes to stdout and stderr: whatever a name holds, and whatever happens to the stream."""

import json
import math
import os
import sys
from typing import Any

from ofqctl.errors import OutputError

_JOINERS = "\u200c\u200d"  # of letters and of emoji; they cannot be seen, but belong to words


def prepare_streams() -> None:
    """Make sure that a character that a stream cannot show is an escape, and that no file is opened as a closed one."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)


def prints() -> bool:
    """Whether this process prints results; of several that torchrun started, the first does."""
    return os.environ.get("RANK", "0") == "0"


def visible(text: str, kept: str = "") -> str:
    """``text`` with every character that a terminal acts on, or that reorders text, written as an escape.

    These are control characters (C0 with line breaks, and C1), line separators, marks of direction and other characters
    that have no form. Names of classes, files and models are made by others.

    Args:
        text: What is printed.
        kept: Control characters to leave as they are.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in kept or _is_blank(c) else _escaped(c) for c in text)


def say(text: str) -> None:
    """Print lines to stdout.

    Raises:
        OutputError: It is closed, or full.
    """
    write(visible(text, kept="\n\t") + "\n")


def write(text: str) -> None:
    """Write to stdout what is safe to print, such as a drawn table.

    Raises:
        OutputError: It is closed, or full.
    """
    if sys.stdout is None:
        raise OutputError("stdout: is closed, so nothing can be printed")
    try:
        sys.stdout.write(text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_written(error) from error


def say_json(value: Any) -> None:
    """Print one JSON document to stdout; numbers that are not finite, which JSON lacks, are null.

    Raises:
        OutputError: It is closed, or full.
    """
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "").startswith("utf")
    text = json.dumps(_finite(value), indent=2, ensure_ascii=not unicode)
    if not text.replace("\n", "").isprintable():
        text = "".join(c if c == "\n" or visible(c) == c else json.dumps(c)[1:-1] for c in text)
    say(text)


def tell(text: str) -> None:
    """Print lines to stderr; if that is closed or full, there is nobody to tell."""
    try:
        print(visible(text, kept="\n\t"), file=sys.stderr, flush=True)
    except OSError:
        return


def finish() -> None:
    """Write out what was printed.

    Raises:
        OutputError: Stdout is closed, or full.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _not_written(error) from error


def give_up_stdout() -> None:
    """Drop what could not be written, which the interpreter would try again at its end."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):
        return


def _not_written(error: OSError) -> OutputError:
    return OutputError(f"stdout: not everything could be printed: {error.strerror or error}")


def _is_blank(character: str) -> bool:
    return (character.isspace() and character > "\u009f" and character not in "\u2028\u2029") or character in _JOINERS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
