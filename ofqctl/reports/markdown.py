"""Text in Markdown that stands there as it is, in every dialect, whatever characters it has."""

import re
from collections.abc import Iterable

_ENTITIES = {"&": "&amp;", "<": "&lt;", "~": "&#126;", "$": "&#36;"}  # some readers know no backslash ahead of these
_SPECIAL = re.compile(r"[\\`*{}\[\]|#]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is none
_AT_START = re.compile(r"^(\d*)(?=[>+!.)-])")


def plain(text: str) -> str:
    """A text on one line."""
    escaped = _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
    return "".join(_ENTITIES.get(sign, sign) for sign in escaped)


def block(text: str) -> str:
    """A text on one line, where a heading, a paragraph or an entry of a list begins."""
    return _AT_START.sub(r"\1\\", plain(text))


def row(cells: Iterable[str]) -> str:
    """A row of a table, of Markdown."""
    return f"| {' | '.join(cells)} |"
