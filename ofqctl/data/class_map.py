"""Class maps: files that say which class has which label."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofqctl.errors import DataError

_NAME_AND_LABEL = re.compile(r"(.*\S)\s+(-?\d+)")
_FORMATS = (
    "a class map has one class name per line in label order, or 'name index' on every line, "
    'or is JSON: {"name": index}'
)


@dataclass(frozen=True)
class ClassMap:
    """Class names and their labels, as read from a file.

    Args:
        path: The file.
        labels: Label of every class name.
        complete: Whether the file lists every label in order, rather than some by number.
    """

    path: Path
    labels: dict[str, int]
    complete: bool


def read_class_map(path: Path) -> ClassMap:
    """Read a class map: names in label order, 'name index' on every line, or JSON.

    Raises:
        DataError: The file is missing or malformed, repeats a name or holds a negative index.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8").rstrip()
    except OSError as error:
        raise DataError(f"{path}: the class map cannot be read: {error.strerror}", hint=_FORMATS) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the class map is not UTF-8 text", hint=_FORMATS) from error
    pairs, complete = _from_json(path, text) if text[:1] in ("{", "[") else _from_lines(path, text)
    if not pairs:
        raise DataError(f"{path}: the class map is empty", hint=_FORMATS)
    repeated = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
    if repeated:
        raise DataError(f"{path}: the class map names '{repeated[0]}' more than once; each name may appear only once")
    negative = [f"'{name}' {label}" for name, label in pairs if label < 0]
    if negative:
        raise DataError(f"{path}: the class map gives {negative[0]}; labels start at 0")
    return ClassMap(path, dict(pairs), complete)


def _from_lines(path: Path, text: str) -> tuple[list[tuple[str, int]], bool]:
    """Names with their labels from plain text, and whether the lines alone give the labels."""
    lines = [line.strip() for line in text.splitlines()]
    if "" in lines:
        raise DataError(f"{path}: line {lines.index('') + 1} of the class map is empty", hint=_FORMATS)
    matches = [_NAME_AND_LABEL.fullmatch(line) for line in lines]
    numbered = [(match[1], int(match[2])) for match in matches if match]
    if len(numbered) == len(lines):
        return numbered, False
    return [(line, label) for label, line in enumerate(lines)], True


def _from_json(path: Path, text: str) -> tuple[list[tuple[str, int]], bool]:
    """Names with their labels from a JSON object or list, and whether their order gives the labels."""
    try:
        # Pairs instead of a dict, which would hide repeated names.
        content = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}: the class map is not valid JSON: {error.msg} at {place}", hint=_FORMATS) from error
    if isinstance(content, list):
        if not all(isinstance(name, str) for name in content):
            raise DataError(f"{path}: the class map's JSON list holds something other than names", hint=_FORMATS)
        return [(name, label) for label, name in enumerate(content)], True
    wrong = [f"'{name}': {label!r}" for name, label in content if not _is_label(label)]
    if wrong:
        raise DataError(f"{path}: the class map gives {wrong[0]}, which is not an integer", hint=_FORMATS)
    return list(content), False


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
