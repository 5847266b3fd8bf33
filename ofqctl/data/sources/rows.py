"""Rows of a `datasets` table as records, by index or as a stream."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, overload

from ofqctl.data.sources.failures import data_errors
from ofqctl.data.sources.source import Record

_SHUFFLE_BUFFER = 1000
_DIGESTED = 4096  # rows at once


class ClassNameOf:
    """Returns the class name of a row; a class and not a closure, so that loader processes can unpickle it.

    Args:
        column: Name of the label column; None for unlabelled data.
        names: Class names by number, if the column declares them.
    """

    def __init__(self, column: str | None, names: tuple[str, ...] = ()) -> None:
        self.column = column
        self.names = names

    def __call__(self, row: Any) -> str | None:
        """The class name of a row; None if it has no label."""
        value = row[self.column] if self.column else None
        if value is None or isinstance(value, str):
            return value
        if value < 0:
            return None
        return self.names[value] if value < len(self.names) else str(value)


class TableRecords(Sequence[Record]):
    """The rows of a table.

    Args:
        where: Name of the data, for messages.
        table: A `datasets.Dataset` whose image column is undecoded.
        image: Name of the image column.
        class_name_of: Returns the class name of a row.
    """

    def __init__(self, where: str, table: Any, image: str, class_name_of: ClassNameOf) -> None:
        self.where = where
        self.table = table
        self.image = image
        self.class_name_of = class_name_of

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        row = self.table[index]
        return Record(f"{self.where}[{index}]", _content(row[self.image]), self.class_name_of(row))

    def digest(self) -> str:
        """A digest of the labels, and of the paths and sizes of the images, in the order of the rows."""
        from pyarrow import types
        from pyarrow.compute import binary_length

        digest = blake2b(digest_size=16)
        for columns in self.table.with_format("arrow").iter(batch_size=_DIGESTED):
            image, label = columns[self.image], self.class_name_of.column
            parts = image.flatten() if types.is_struct(image.type) else [image]
            sizes = [part if types.is_string(part.type) else binary_length(part) for part in parts]
            values = [column.to_pylist() for column in (*sizes, *([columns[label]] if label else []))]
            digest.update(repr(values).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class StreamRecords:
    """The rows of a streamed table.

    Args:
        where: Name of the data, for messages.
        table: A `datasets.IterableDataset` whose image column is undecoded.
        image: Name of the image column.
        class_name_of: Returns the class name of a row.
    """

    def __init__(self, where: str, table: Any, image: str, class_name_of: ClassNameOf) -> None:
        self.where = where
        self.table = table
        self.image = image
        self.class_name_of = class_name_of

    def __iter__(self) -> Iterator[Record]:
        with data_errors(self.where):
            # `iter` yields every row in every loader process; plain iteration would divide rows among them by file.
            for index, rows in enumerate(self.table.iter(batch_size=1)):
                row = {name: values[0] for name, values in rows.items()}
                name = f"{self.where}, image {index} of the stream"
                yield Record(name, _content(row[self.image]), self.class_name_of(row))

    def shuffled(self, seed: int) -> "StreamRecords":
        """The same rows, shuffled by file and within a buffer of 1000 rows."""
        table = self.table.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        return StreamRecords(self.where, table, self.image, self.class_name_of)

    def shared(self, rank: int, world: int) -> "StreamRecords":
        """The rows of one of ``world`` processes: whole files if they can be divided evenly, else every n-th row."""
        from datasets.distributed import split_dataset_by_node

        table = split_dataset_by_node(self.table, rank, world)
        return StreamRecords(self.where, table, self.image, self.class_name_of)


def _content(value: Any) -> str | bytes:
    """An undecoded image as its bytes, or as the path or URL of its file; None if there is none."""
    if value is None:
        return b""
    return str(value["path"]) if value["bytes"] is None else bytes(value["bytes"])
