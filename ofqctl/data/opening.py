"""Open the data that the user named."""

import os
import re
from pathlib import Path

from ofqctl.data.class_map import read_class_map
from ofqctl.data.image_labels import with_labels
from ofqctl.data.images import ImageData
from ofqctl.data.labels import map_labels
from ofqctl.data.sources.digits import open_digits
from ofqctl.data.sources.files import is_image
from ofqctl.data.sources.folder import open_folder
from ofqctl.data.sources.hub import check_hub
from ofqctl.data.sources.huggingface import open_datasets
from ofqctl.data.sources.parts import Part, named_part, part_of
from ofqctl.data.sources.source import Source
from ofqctl.data.spec import DataSpec, LabelSpace, Purpose
from ofqctl.errors import DataError, did_you_mean

DIGITS = "digits"
HUB_PREFIX = "hfds/"
_TABLES = (".parquet", ".tar")  # those of webdataset


def open_data(
    spec: DataSpec, labels: LabelSpace | None = None, purpose: Purpose = "evaluate", *, renaming: bool = False
) -> ImageData:
    """Open data and map its classes onto the labels of a model.

    Args:
        spec: The data that the user named.
        labels: The labels of the model; None to use those of the data.
        purpose: What it is opened for: decides which split is read if none was named. For calibration it is unlabelled.
        renaming: Whether the outputs of the model may stand for other classes than so far; see `map_labels`.

    Raises:
        DataError: The data is missing, unreadable or empty, or its classes do not fit the model.
    """
    source, unused, part = _open_source(spec, purpose)
    class_map = None
    labelled = with_labels(source, spec.class_map) if spec.class_map and source.classes is None else None
    if labelled is not None:
        source, class_map = labelled
    elif spec.class_map:
        class_map = read_class_map(spec.class_map)
    if part is not None:
        source = part_of(source, part)
    if source.classes is None or purpose == "calibrate":
        unused += ["--class-map"] if class_map else []
        mapping = None
    else:
        mapping = map_labels(source.classes, labels, class_map, source.name, renaming=renaming)
    notes = [source.unlabelled] if source.unlabelled and purpose != "calibrate" else []
    notes += [f"{option} has no effect on {spec.path}" for option in unused]
    return ImageData(source, mapping, labels or LabelSpace(0), notes)


def _open_source(spec: DataSpec, purpose: Purpose) -> tuple[Source, list[str], Part | None]:
    """The source that reads ``spec``, the options that have no effect on it, and the part of it that is wanted."""
    if spec.path.startswith(HUB_PREFIX):
        name = spec.path.removeprefix(HUB_PREFIX)
        check_hub(name)
        return open_datasets(name, spec, purpose), [], None
    split, part = named_part(spec.split)
    if spec.path == DIGITS:
        return open_digits(split, purpose), _table_options(spec), part
    root = _existing_folder(spec.path)
    if _holds_tables(root):
        return open_datasets(str(root.resolve()), spec, purpose), [], None
    return open_folder(root, split, purpose), _table_options(spec), part


def _table_options(spec: DataSpec) -> list[str]:
    given = {
        "--image-column": spec.image_column,
        "--label-column": spec.label_column,
        "--streaming": spec.streaming,
    }
    return [option for option, value in given.items() if value]


def _existing_folder(path: str) -> Path:
    root = Path(path).expanduser()
    try:
        if root.is_dir():
            return root
        exists = root.exists()
        siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint="check its permissions: ls -ld") from error
    if exists:
        raise DataError(
            f"{path}: is a file; data is a folder, hfds/NAME or {DIGITS}",
            hint="a tar of webdataset is read in a folder of its own, another one is unpacked first: --data FOLDER",
        )
    hint = did_you_mean(root.name, [*siblings, DIGITS])
    if hint is None and re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        hint = f"--data {HUB_PREFIX}{path} reads the dataset of this name from the hub"
    raise DataError(f"{path}: no such folder; data is a folder, {HUB_PREFIX}NAME or {DIGITS}", hint=hint)


def _holds_tables(root: Path) -> bool:
    """Whether the first data file below ``root`` is parquet, or a tar of webdataset, rather than an image."""
    for _, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if any(is_image(name) for name in files):
            return False
        if any(name.lower().endswith(_TABLES) for name in files if not name.startswith(".")):
            return True
    return False
