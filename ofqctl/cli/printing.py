"""The one place that writes to stdout and stderr: whatever a name holds, and whatever happens to the stream."""

import json
import math
import os
import re
import shutil
import sys
from textwrap import wrap
from typing import Any, TextIO

from ofqctl.errors import OutputError

_LABEL = re.compile(r"\s*(- |\S+(?: \S+)*(?<!\.)  +)?")  # what stands ahead of a line's text: blanks, a dash, a label
_WHOLE = re.compile(r"`[^`]*`|(?<=: )ofqctl .*|\d %")  # commands, which are copied, and shares
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


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Number of characters in a line of the terminal that stdout, or a stream, goes to; None if it is none."""
    stream = sys.stdout if stream is None else stream
    return shutil.get_terminal_size().columns if stream is not None and stream.isatty() else None


def as_shown(text: str) -> str:
    """A text as stdout shows it: with escapes for characters that its encoding lacks."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def broken(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most this width, unless a word is longer; all but the first are indented. At least one line."""
    return wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) or [""]


def prose(text: str, width: int | None) -> str:
    """One line of text as lines of a terminal, the further ones below the text after the label; commands stay whole.

    Text of several lines has its own, and stays as it is.
    """
    line = text.lstrip("\n")
    if width is None or len(line) <= width or "\n" in line or line.lstrip().startswith("ofqctl "):
        return text
    label = _LABEL.match(line)
    ahead = label[0] if label else ""
    kept = _WHOLE.sub(lambda command: command[0].replace(" ", "\0"), line[len(ahead) :])
    lines = broken(kept, max(1, width - len(ahead)))
    return text[: len(text) - len(line)] + ahead + ("\n" + " " * len(ahead)).join(lines).replace("\0", " ")


def say_prose(text: str) -> None:
    """Print a line to stdout, on a terminal broken between words.

    Raises:
        OutputError: It is closed, or full.
    """
    say(prose(text, terminal_width()))


def tell_prose(text: str) -> None:
    """Print a line to stderr, on a terminal broken between words."""
    tell(prose(text, None if sys.stderr is None else terminal_width(sys.stderr)))


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
