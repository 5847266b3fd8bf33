"""Tables read with the `datasets` library: a local directory with parquet files, or a dataset on the hub."""

from typing import Any

from ofqctl.data.sources.classes import ClassNames, classes_by_name
from ofqctl.data.sources.columns import image_column, is_class_label, is_text, label_column
from ofqctl.data.sources.failures import data_errors
from ofqctl.data.sources.rows import ClassNameOf, StreamRecords, TableRecords
from ofqctl.data.sources.source import Source
from ofqctl.data.sources.splits import choose_split, find_split
from ofqctl.data.spec import DataSpec, Purpose
from ofqctl.errors import DataError

_MOST_CLASSES = 1_000_000  # of plain numbers; more are no labels


def open_datasets(repo: str, spec: DataSpec, purpose: Purpose) -> Source:
    """Open a `datasets` table.

    Args:
        repo: Local directory, or name of a dataset on the hub.
        spec: Split, columns and whether to stream.
        purpose: What it is opened for; calibration does not look for labels.

    Raises:
        DataError: Not a dataset, damaged, empty, or without the requested split or column.
    """
    import datasets

    with data_errors(spec.path):
        splits = [str(name) for name in datasets.get_dataset_split_names(repo)]
        split, notes = _choose_split(spec, splits, purpose)
        table = datasets.load_dataset(repo, split=split, streaming=spec.streaming)
    where = f"{spec.path}:{split}"
    if table.features is None:
        raise DataError(f"{where}: the columns are unknown before reading", hint="leave out --streaming")
    image, image_note = image_column(table.features, spec.image_column, where)
    label = label_note = None
    if purpose != "calibrate":
        label, label_note = label_column(table.features, spec.label_column, where)
    notes += [note for note in (image_note, label_note) if note]
    with data_errors(where):
        # Read bytes, not images, so that damaged images can be skipped.
        table = table.select_columns([name for name in (image, label) if name])
        table = table.cast_column(image, datasets.Image(decode=False))
    return _source(where, table, image, label, notes)


def _choose_split(spec: DataSpec, splits: list[str], purpose: Purpose) -> tuple[str, list[str]]:
    """The split to load, with slices such as ``train[:10%]``, and a note if it was guessed."""
    name, bracket, part = (spec.split or "").partition("[")
    if name:
        return find_split(name, splits, spec.path) + bracket + part, []
    split, note = choose_split(splits, purpose, spec.path)
    return split + bracket + part, [note] if note else []


def _source(where: str, table: Any, image: str, label: str | None, notes: list[str]) -> Source:
    """A table with its image column undecoded, as a source."""
    import datasets

    if isinstance(table, datasets.IterableDataset):
        classes = _classes(table.features[label], None) if label else None
        stream = StreamRecords(where, table, image, _class_name_of(table, label))
        return Source(where, stream, classes, None, tuple(notes), _declared_rows(table))
    if len(table) == 0:
        raise DataError(f"{where}: the split is empty; at least one image is needed")
    labels = _labels_used(table, label) if label else []
    if label and not labels:
        notes.append(f"label column '{label}' of {where} holds no labels: the images are unlabelled")
        label = None
    classes = _classes(table.features[label], labels) if label else None
    rows = TableRecords(where, table, image, _class_name_of(table, label))
    return Source(where, rows, classes, len(labels) or None, tuple(notes))


def _declared_rows(stream: Any) -> int | None:
    """Number of rows of the split according to the description of a streamed table; None if unknown."""
    split = (stream.info.splits or {}).get(str(stream.split))
    return getattr(split, "num_examples", None) or None


def _labels_used(table: Any, label: str) -> list[Any]:
    """The distinct labels, sorted, without those that mean 'no label' (None, or a negative number)."""
    values = [value for value in table.unique(label) if value is not None]
    return sorted(value for value in values if isinstance(value, str) or value >= 0)


def _classes(feature: Any, labels: list[Any] | None) -> ClassNames:
    """The classes of a label column; ``labels`` are those that occur, or None if the table is streamed."""
    if is_class_label(feature):
        return ClassNames(tuple(feature.names), "classes", "in the data's own order")
    numbered = not is_text(feature)
    if labels is None:
        return ClassNames(None, "classes", "in the data's own order", numbered)
    if not numbered:
        return classes_by_name(labels, "classes")
    if labels[-1] >= _MOST_CLASSES:
        raise DataError(
            f"label column: holds the number {labels[-1]}; labels are 0..{_MOST_CLASSES - 1}",
            hint="--label-column NAME",
        )
    names = tuple(str(number) for number in range(labels[-1] + 1))
    return ClassNames(names, "classes", "as numbered in the data", numbered)


def _class_name_of(table: Any, label: str | None) -> ClassNameOf:
    feature = table.features[label] if label else None
    return ClassNameOf(label, tuple(getattr(feature, "names", ())))
