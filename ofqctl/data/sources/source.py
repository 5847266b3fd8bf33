"""What every reader of data returns: records with class names, before labels are decided."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from PIL import Image

from ofqctl.data.sources.classes import ClassNames


class Record(NamedTuple):
    """One image, not yet decoded.

    Args:
        name: Its name in messages: a path, or a row such as ``test[17]``.
        image: Path of a file, content of a file, or a decoded image.
        class_name: Name of its class; None if it has no label.
    """

    name: str
    image: str | bytes | Image.Image
    class_name: str | None


class RecordStream(Protocol):
    """Records that can only be read in order, from first to last."""

    def __iter__(self) -> Iterator[Record]: ...

    def shuffled(self, seed: int) -> "RecordStream":
        """The same records, shuffled with ``seed``."""

    def shared(self, rank: int, world: int) -> "RecordStream":
        """The records of one of several processes that share the data."""


@dataclass(frozen=True)
class Source:
    """Data that was found, with the list of its images.

    Args:
        name: Its name in messages: path and split.
        records: The images, by index or as a stream.
        classes: The declared classes; None for unlabelled data.
        class_count: Number of classes that occur; None if unknown.
        notes: What was guessed or left out, a sentence each.
        declared: Number of records according to a stream's description; None if it has none, or if the data has an
            index.
        unlabelled: Why the images have no labels, one sentence, for who needs some; None if they have.
        part: The part of the split that it is, such as ``[:80%]``; empty for all of it.
    """

    name: str
    records: Sequence[Record] | RecordStream
    classes: ClassNames | None
    class_count: int | None
    notes: tuple[str, ...] = ()
    declared: int | None = None
    unlabelled: str | None = None
    part: str = ""
