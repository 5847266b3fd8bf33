"""Class maps: files that say which class has which label.

The forms that are common elsewhere are read as well: ``id2label`` and ``label2id`` of Hugging Face (alone or in a
config.json), Keras' ``imagenet_class_index.json``, ``synset_words.txt`` (a WordNet id and words on every line, in label
order), and tables of names and labels in either order, with or without a header. Where a file can be read in several
ways, as names that end in a year can, the way is used that names the classes of the data.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ofqctl.errors import DataError

Pairs = list[tuple[str, int]]

_NAME_AND_LABEL = re.compile(r"(.*[^\s,;])[\s,;]+(-?\d+)")
_LABEL_AND_NAME = re.compile(r"(\d+)[\s,;:]+(\S.*)")
_ID_AND_WORDS = re.compile(r"(n\d{8})[\s,;]+\S.*")
_NAME_HEADINGS = frozenset(("category", "class", "class_name", "classname", "folder", "name", "synset", "wnid"))
_LABEL_HEADINGS = frozenset(("class_id", "class_index", "id", "idx", "index", "label", "number", "target"))
_FORMATS = (
    "a class map has one class name per line in label order, or 'name index' or 'index name' on every line, "
    'or is JSON: {"name": index} or {"index": "name"}'
)


@dataclass(frozen=True)
class Reading:
    """One way to read a class map.

    Args:
        pairs: Class names with their labels, as they follow one another in the file.
        complete: Whether the file lists every label in order, rather than some by number.
    """

    pairs: Pairs
    complete: bool

    @property
    def labels(self) -> dict[str, int]:
        """Label of every class name."""
        return dict(self.pairs)

    @property
    def fault(self) -> str | None:
        """What is wrong with it, or None."""
        if not self.pairs:
            return "is empty"
        repeated = [name for name, times in Counter(name for name, _ in self.pairs).items() if times > 1]
        if repeated:
            return f"names '{repeated[0]}' more than once; each name may appear only once"
        negative = [f"'{name}' {label}" for name, label in self.pairs if label < 0]
        return f"gives {negative[0]}; labels start at 0" if negative else None


@dataclass(frozen=True)
class ClassMap:
    """A file of class names and their labels.

    Args:
        path: The file.
        readings: The ways to read it, at least one, the most likely first.
    """

    path: Path
    readings: tuple[Reading, ...]

    def naming(self, names: Collection[str] | None) -> Reading:
        """The first way of reading that names all of ``names``, else the first.

        Raises:
            DataError: It is empty, repeats a name or holds a negative index.
        """
        fitting = (r for r in self.readings if names and r.fault is None and r.labels.keys() >= set(names))
        reading = next(fitting, self.readings[0])
        if reading.fault is not None:
            raise DataError(f"{self.path}: the class map {reading.fault}", hint=_FORMATS)
        return reading


def read_class_map(path: Path) -> ClassMap:
    """Read a class map: lines of text, or JSON.

    Raises:
        DataError: The file is missing, or is none.
    """
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig").rstrip()
    except OSError as error:
        raise DataError(f"{path}: the class map cannot be read: {error.strerror}", hint=_FORMATS) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the class map is not UTF-8 text", hint=_FORMATS) from error
    readings = _from_json(path, text) if text[:1] in ("{", "[") else _from_lines(path, text)
    return ClassMap(path, tuple(readings))


def _from_lines(path: Path, text: str) -> Iterator[Reading]:
    """The ways to read lines: a name and a label, a label and a name, a WordNet id and words, a name."""
    lines = [line.strip() for line in text.splitlines()]
    if "" in lines:
        raise DataError(f"{path}: line {lines.index('') + 1} of the class map is empty", hint=_FORMATS)
    headings = re.split(r"[\s,;]+", lines[0].lower()) if lines else []
    rows = lines[1:] if len(headings) > 1 and set(headings) <= _NAME_HEADINGS | _LABEL_HEADINGS else lines
    if numbered := _matches(_NAME_AND_LABEL, rows):
        yield Reading([(_unquoted(name), int(label)) for name, label in numbered], complete=False)
    numbered = _matches(_LABEL_AND_NAME, rows)
    if numbered and {int(label) for label, _ in numbered} == set(range(len(rows))):
        yield Reading([(_unquoted(name), int(label)) for label, name in numbered], complete=False)
    if described := _matches(_ID_AND_WORDS, rows):
        yield _in_order([name for (name,) in described])
    yield _in_order(lines)


def _matches(pattern: re.Pattern[str], lines: list[str]) -> list[tuple[str, ...]]:
    """The groups of ``pattern`` in each line; empty if a line does not match."""
    matches = list(takewhile(bool, map(pattern.fullmatch, lines)))
    return [match.groups() for match in matches if match] if len(matches) == len(lines) else []


def _unquoted(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name


def _in_order(names: list[str]) -> Reading:
    return Reading([(name, label) for label, name in enumerate(names)], complete=True)


def _from_json(path: Path, text: str) -> Iterator[Reading]:
    """The ways to read a JSON list of names, an object of labels by name, or one of names by label."""
    try:
        # Pairs instead of a dict, which would hide repeated names.
        content = json.loads(text, object_pairs_hook=tuple)
    except (json.JSONDecodeError, RecursionError) as error:
        place = f"{error.msg} at line {error.lineno}, column {error.colno}" if isinstance(error, ValueError) else "deep"
        raise DataError(f"{path}: the class map is not valid JSON: {place}", hint=_FORMATS) from error
    if isinstance(content, list):
        if not all(isinstance(name, str) for name in content):
            raise DataError(f"{path}: the class map's JSON list holds something other than names", hint=_FORMATS)
        yield _in_order(content)
        return
    inner = [value for key, value in content if key in ("id2label", "label2id") and isinstance(value, tuple)]
    yield from _from_object(path, inner[0] if inner else content)


def _from_object(path: Path, pairs: tuple[tuple[str, Any], ...]) -> Iterator[Reading]:
    by_label = bool(pairs) and all(key.isdecimal() for key, _ in pairs)
    if by_label and all(isinstance(name, str) for _, name in pairs):
        yield Reading([(name, int(label)) for label, name in pairs], complete=False)
    elif by_label and all(isinstance(row, list) and row and _are_texts(row) for _, row in pairs):
        for column in range(min(len(row) for _, row in pairs)):
            yield Reading([(row[column], int(label)) for label, row in pairs], complete=False)
    else:
        wrong = [f"'{name}': {label!r}" for name, label in pairs if not _is_label(label)]
        if wrong:
            raise DataError(f"{path}: the class map gives {wrong[0]}, which is not an integer", hint=_FORMATS)
        yield Reading([(name, int(label)) for name, label in pairs], complete=False)


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_label(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool) and str(value).removeprefix("-").isdecimal()
