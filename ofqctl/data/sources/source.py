"""What every reader of data hands over: records with class names, before any label is decided."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from PIL import Image


class Record(NamedTuple):
    """One image, not yet decoded.

    Args:
        name: What a message calls it: a path, or a row such as ``test[17]``.
        image: Path, content of a file, or an image.
        class_name: Name of its class; None if it has no label.
    """

    name: str
    image: str | bytes | Image.Image
    class_name: str | None


class RecordStream(Protocol):
    """Records that can only be read from the first to the last."""

    def __iter__(self) -> Iterator[Record]: ...

    def shuffled(self, seed: int) -> "RecordStream":
        """The same records in an order that ``seed`` decides."""

    def shared(self, rank: int, world: int) -> "RecordStream":
        """The part of one of several processes that read together."""


@dataclass(frozen=True)
class ClassNames:
    """The classes a source declares.

    Args:
        names: Class names in the source's own order; None if only reading all of a stream would tell.
        noun: What the source calls them, e.g. 'folders'.
        order: How that order came about, e.g. 'sorted by name'.
        numbered: Whether the names are plain numbers, the source's own labels.
    """

    names: tuple[str, ...] | None
    noun: str
    order: str
    numbered: bool = False


@dataclass(frozen=True)
class Source:
    """Data that was found and listed.

    Args:
        name: What messages call the data: its path and split.
        records: The images, by index or as a stream.
        classes: The classes declared; None if nothing is labelled.
        class_count: Number of classes that occur; None if unknown.
        notes: What was guessed or left out, a sentence each.
        declared: Number of records that a stream says it has; None if it does not, or if there is an index.
    """

    name: str
    records: Sequence[Record] | RecordStream
    classes: ClassNames | None
    class_count: int | None
    notes: tuple[str, ...] = ()
    declared: int | None = None
