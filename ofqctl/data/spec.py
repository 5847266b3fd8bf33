"""The data that the user asked for, and the labels that the model predicts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# What data is opened for: decides which split is read if none is named, and whether labels matter.
Purpose = Literal["train", "evaluate", "calibrate"]


@dataclass(frozen=True)
class DataSpec:
    """The data that the user named.

    Args:
        path: An image folder, a directory with parquet files, ``hfds/NAME`` (the hub) or ``digits``.
        split: Split to read, such as ``val``, or a part such as ``train[:80%]``; without a name, one is chosen by what
            the data is opened for.
        image_column: Column of a `datasets` table that holds the images; None looks for it.
        label_column: Column that holds the labels; None looks for it.
        class_map: File that gives each class name its label; see `class_map.read_class_map`.
        streaming: Read a `datasets` source while it downloads, without random access.
    """

    path: str
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    class_map: Path | None = None
    streaming: bool = False


@dataclass(frozen=True)
class LabelSpace:
    """The labels that a model predicts.

    Args:
        num_classes: Number of outputs; labels are 0..num_classes-1.
        names: Class ids in label order, e.g. WordNet ids; None if unknown.
    """

    num_classes: int
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.names is not None and len(self.names) != self.num_classes:
            raise ValueError(f"label space: {len(self.names)} names given for {self.num_classes} classes")
