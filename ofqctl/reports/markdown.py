"""Text in Markdown that stands there as it is, in every dialect, whatever characters it has."""

import re
from collections.abc import Iterable

_ENTITIES = {"&": "&amp;", "<": "&lt;", "~": "&#126;", "$": "&#36;"}  # some readers know no backslash ahead of these
_SPECIAL = re.compile(r"[\\`*{}\[\]|#]|(?<![^\W_])_|_(?![^\W_])")  # an underscore within a word is none
_CODE = re.compile(r"(`[^`]+`)")
_AT_START = re.compile(r"^(\d*)(?=[>+!.)-])")


def plain(text: str) -> str:
    """A text on one line."""
    return _escaped(" ".join(text.split()))


def block(text: str) -> str:
    """A text on one line, where a heading, a paragraph or an entry of a list begins."""
    return _AT_START.sub(r"\1\\", plain(text))


def prose(text: str) -> str:
    """A paragraph, in which what stands between backticks is code."""
    parts = _CODE.split(" ".join(text.split()))
    return _AT_START.sub(r"\1\\", "".join(part if _CODE.fullmatch(part) else _escaped(part) for part in parts))


def _escaped(text: str) -> str:
    escaped = _SPECIAL.sub(r"\\\g<0>", text)
    return "".join(_ENTITIES.get(sign, sign) for sign in escaped)


def row(cells: Iterable[str]) -> str:
    """A row of a table, of Markdown."""
    return f"| {' | '.join(cells)} |"
