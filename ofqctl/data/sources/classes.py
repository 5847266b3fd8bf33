"""The classes that a source declares, and the order that they have of themselves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_DIGITS = 19  # longer ones are no labels, and slow to read


@dataclass(frozen=True)
class ClassNames:
    """The classes that a source declares.

    Args:
        names: Class names in the source's own order; None for a stream that does not list them.
        noun: What classes are called in messages, such as 'folders'.
        order: Description of the order, such as 'sorted by name'.
        numbered: Whether the names are numbers: the source's own labels.
    """

    names: tuple[str, ...] | None
    noun: str
    order: str
    numbered: bool = False


def classes_by_name(names: Iterable[str], noun: str) -> ClassNames:
    """The classes of a source that only names them: names that are numbers by value, others by name."""
    found = tuple(sorted(names))
    numbers = numbers_of(found)
    if numbers is None:
        return ClassNames(found, noun, "sorted by name")
    by_value = sorted(zip(numbers, found, strict=True))
    return ClassNames(tuple(name for _, name in by_value), noun, "sorted by number")


def numbers_of(names: Sequence[str]) -> list[int] | None:
    """The numbers that the names are; None unless every name is one, and each another."""
    if not names or not all(name.isascii() and name.isdecimal() and len(name) < _DIGITS for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None
