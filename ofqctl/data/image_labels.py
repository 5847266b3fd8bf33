"""Labels of the images in one folder, from a file that names image and class on every line.

So come ImageNet's validation images: ``val.txt`` (image and label), ``LOC_val_solution.csv`` (image, then WordNet id
and boxes). A file of WordNet ids alone, ``imagenet_2012_validation_synset_labels.txt``, follows the sorted names of the
images.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ofqctl.data.class_map import ClassMap, Reading
from ofqctl.data.imagenet import are_wordnet_ids
from ofqctl.data.sources.classes import ClassNames
from ofqctl.data.sources.source import Record, Source
from ofqctl.errors import DataError

_FORMAT = "every line names an image and its class, a label or a WordNet id: `ILSVRC2012_val_00000001.JPEG 65`"


def with_labels(source: Source, path: Path) -> tuple[Source, ClassMap | None] | None:
    """Give unlabelled images the classes that a file names.

    Args:
        source: Images in one folder.
        path: The file.

    Returns:
        The labelled images, and a class map if the file names labels by number; None if it names none of the images.

    Raises:
        DataError: The file cannot be read, or what it names is no class.
    """
    if not isinstance(source.records, Sequence):
        return None
    classes = _classes(path, source.records)
    found = [classes.get(Path(record.name).stem) for record in source.records]
    used = {name for name in found if name is not None}
    if not used:
        return None
    numbered = all(name.isdecimal() for name in used)
    if not numbered and not are_wordnet_ids(used):
        strange = next(name for name in sorted(used) if not are_wordnet_ids([name]))
        raise DataError(f"{path}: '{strange}' is neither a label nor a WordNet id", hint=_FORMAT)
    records = [record._replace(class_name=name) for record, name in zip(source.records, found, strict=True)]
    names = tuple(sorted(used, key=int) if numbered else sorted(used))
    notes = (*source.notes, f"the labels of {source.name} are those of {path}")
    labelled = replace(
        source,
        records=records,
        classes=ClassNames(names, "labels" if numbered else "classes", f"as {path.name} says", numbered),
        class_count=len(used),
        notes=notes,
        unlabelled=None,
    )
    if not numbered:
        return labelled, None
    return labelled, ClassMap(path, (Reading([(name, int(name)) for name in names], complete=False),))


def _classes(path: Path, records: Sequence[Record]) -> dict[str, str]:
    """Class by the name of the image without its suffix."""
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the labels of images cannot be read: {error}", hint=_FORMAT) from error
    rows = [re.split(r"[\s,;]+", line.strip()) for line in lines if line.strip()]
    if all(len(row) == 1 for row in rows):
        return _in_order([row[0] for row in rows], records)
    return {Path(row[0]).stem: row[1] for row in rows if len(row) > 1}


def _in_order(names: list[str], records: Sequence[Record]) -> dict[str, str]:
    """A WordNet id for each image, in the order of the sorted names of images; a class map repeats none of them."""
    if not are_wordnet_ids(names) or len(set(names)) == len(names) or len(names) != len(records):
        return {}
    return dict(zip(sorted(Path(record.name).stem for record in records), names, strict=True))
