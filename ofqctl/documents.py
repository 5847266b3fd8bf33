"""Read what others may have written or damaged: text, JSON and YAML, and the typed models that they hold.

Every reader of the program goes through here, so that a damaged document is one sentence that names the file and the
field, whatever is wrong with it: it is not text, too large, nested too deeply, or a number is none.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ofqctl.errors import ArtifactError, OfqctlError

Model = TypeVar("Model", bound=BaseModel)
Error = type[OfqctlError]

LARGEST_BYTES = 64 * 2**20
DEEPEST = 64  # levels of nesting
LARGEST_LENGTH = 2**16  # of an argument of an architecture, such as its depth, its width or its number of classes

_MERGE = "tag:yaml.org,2002:merge"
# What the parsers are known to raise, beside their own errors: digits that are no number, dates that are none, ...
_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
# What timm, torch and numpy are known to raise on values that do not fit, and on sizes that no memory holds.
UNSUITABLE = (*_FAULTS, AssertionError, RuntimeError, NotImplementedError, MemoryError)
_SHOWN = 60  # characters of a value in a message


def read_text(path: Path, error: Error = ArtifactError) -> str:
    """The text of a file, UTF-8.

    Args:
        path: Path of the file.
        error: Class of the error to raise.

    Raises:
        OfqctlError: It cannot be read, is too large, or is not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as fault:
        raise error(f"{path}: cannot be read: {fault.strerror or fault}") from fault
    if len(content) > LARGEST_BYTES:
        raise error(f"{path}: cannot be read: larger than {LARGEST_BYTES // 2**20} MiB")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as fault:
        raise error(f"{path}: cannot be read: not a text file: {fault}") from fault


def parse_json(text: str, where: str, error: Error = ArtifactError) -> Any:
    """The values of a JSON document; numbers that are not finite, which JSON lacks, are None.

    Args:
        text: The document.
        where: Its name, for messages.
        error: Class of the error to raise.

    Raises:
        OfqctlError: It is not JSON, or nested too deeply.
    """
    return _parsed(_load_json, text, f"{where} cannot be read", error)


def digest_of(values: Any) -> str:
    """SHA-256 in hexadecimal digits of the values of a JSON document: of their shortest text, with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def parse_yaml(text: str, where: str, error: Error = ArtifactError) -> Any:
    """The values of a YAML document; arguments as for :func:`parse_json`.

    Raises:
        OfqctlError: It is not YAML, or nested too deeply.
    """
    return _parsed(_load_yaml, text, f"{where}: not valid YAML", error)


def checked(model: type[Model], values: Any, where: str, error: Error = ArtifactError) -> Model:
    """Values as a typed model.

    Args:
        model: Class of the model.
        values: Result of one of the parsers.
        where: Name of the document, for messages.
        error: Class of the error to raise.

    Raises:
        OfqctlError: A field is missing, unknown or of another type; the message names the first one.
    """
    try:
        return model.model_validate(values)
    except (ValidationError, *_FAULTS) as fault:
        raise error(f"{where}: {field_fault(fault)}") from fault


@contextmanager
def fitting(what: str, error: Error = ArtifactError) -> Iterator[None]:
    """Turn what libraries raise on values that do not fit into an error that starts with ``what``."""
    try:
        yield
    except UNSUITABLE as fault:
        raise error(f"{what}: {short(fault, length=400) or type(fault).__name__}") from fault


def field_fault(fault: Exception) -> str:
    """The first field that pydantic found at fault, and why."""
    if not isinstance(fault, ValidationError):
        return f"cannot be read: {type(fault).__name__} {short(fault)}"
    try:
        first, *more = fault.errors(include_url=False)
    except UnicodeError:
        return "a name is not Unicode"
    field = ".".join(short(part, "s") for part in first["loc"])
    message = str(first["msg"]).removeprefix("Value error, ")
    seen = "" if first["type"] == "missing" or isinstance(first["input"], dict) else f", seen {short(first['input'])}"
    return f"{field + ': ' if field else ''}{message}{seen}{f' (and {len(more)} more)' if more else ''}"


def short(value: object, form: str = "r", length: int = _SHOWN) -> str:
    """``value`` in a few characters, on one line, for messages."""
    text = str(value) if form == "s" or isinstance(value, Exception) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[:length]}..."


def check_lengths(values: Any) -> Any:
    """Check that numbers among the arguments of an architecture are lengths that some model has.

    Raises:
        ValueError: One is larger than any, or not finite.
    """
    waiting = [values]
    while waiting:
        value = waiting.pop()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        if isinstance(value, int | float) and (not math.isfinite(value) or abs(value) > LARGEST_LENGTH):
            raise ValueError(f"{short(value)} is too large; allowed are numbers up to {LARGEST_LENGTH}")
    return values


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # ten times as fast, if libyaml is installed
    """Refuses a key that stands twice in a mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """The mapping of a node."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE]
        counts = Counter((key.tag, key.value) for key in keys)
        twice = [key for key in keys if counts[key.tag, key.value] > 1]
        if twice:
            lines = ", ".join(str(key.start_mark.line + 1) for key in twice if key.value == twice[0].value)
            raise yaml.constructor.ConstructorError(None, None, f"'{twice[0].value}' stands twice: lines {lines}")
        return super().construct_mapping(node, deep)


def _parsed(parse: Callable[[str], Any], text: str, wrong: str, error: Error) -> Any:
    try:
        values = parse(text)
        _check_values(values)
    except (yaml.YAMLError, *_FAULTS) as fault:
        reason = "nested too deeply" if isinstance(fault, RecursionError) else " ".join(str(fault).split())
        raise error(f"{wrong}: {reason}") from fault
    return values


def _load_json(text: str) -> Any:
    return json.loads(text, parse_float=_finite, parse_constant=lambda _: None)


def _load_yaml(text: str) -> Any:
    depth = 0
    for event in yaml.parse(text, Loader=_Yaml):  # the loader itself recurses
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise RecursionError
    return yaml.load(text, Loader=_Yaml)


def _finite(digits: str) -> float | None:
    value = float(digits)
    return value if math.isfinite(value) else None


def _check_values(values: Any) -> None:
    """Check the depth and the numbers of values; those that a YAML document names several times are followed once."""
    level, seen = [values], set[int]()
    for _ in range(DEEPEST + 1):
        if any(isinstance(value, float) and not math.isfinite(value) for value in level):
            raise ValueError("a number is not finite")
        inside = list({id(value): value for value in level if isinstance(value, dict | list)}.items())
        level = [own for key, value in inside if key not in seen for own in _contents(value)]
        seen.update(key for key, _ in inside)
        if not level:
            return
    raise RecursionError


def _contents(value: dict[Any, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
