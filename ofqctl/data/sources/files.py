"""Files that are images, and what else lies in their folders: nothing is passed over without being counted."""

import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import Image

from ofqctl.errors import DataError

# What systems leave in folders of their own accord, in lower case.
_LITTER = frozenset(("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"))
# Formats that Pillow registers, but that it cannot draw by itself (PostScript would start another program).
_NOT_DRAWN = frozenset(("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"))


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that images are read from: all that Pillow can draw."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - _NOT_DRAWN))


@cache
def _extensions() -> frozenset[str]:
    formats = image_formats()
    return frozenset(extension for extension, kind in Image.registered_extensions().items() if kind in formats)


def is_image(name: str) -> bool:
    """Whether a file is an image that Pillow reads, by its extension, in any case."""
    return os.path.splitext(name)[1].lower() in _extensions()  # noqa: PTH122 - a Path a file costs minutes


class PassedOver:
    """Counts what is passed over below a folder.

    Hidden files, unless they are called like an image, and what systems leave behind (``Thumbs.db``, ``__MACOSX``) are
    not data and not counted.
    """

    def __init__(self) -> None:
        self._others: Counter[str] = Counter()
        self._hidden = self._loops = 0

    def keeps(self, name: str) -> bool:
        """Whether a file is an image to read; otherwise it is counted."""
        if _is_hidden(name):
            self._hidden += is_image(name) and not name.startswith("._")  # of macOS: attributes of another file
        elif is_image(name):
            return True
        elif name.lower() not in _LITTER:
            self._others[os.path.splitext(name)[1].lower() or "none"] += 1  # noqa: PTH122
        return False

    def loop(self) -> None:
        """Count a folder that was entered before."""
        self._loops += 1

    def notes(self, where: object) -> list[str]:
        """What was passed over in ``where``, a sentence for each kind."""
        notes = []
        if self._others:
            kinds = ", ".join(f"{count} with extension {name}" for name, count in self._others.most_common(4))
            more = f" and {len(self._others) - 4} more extensions" if len(self._others) > 4 else ""
            notes.append(f"{self._others.total()} files in {where} were left out, as no images: {kinds}{more}")
        if self._hidden:
            notes.append(f"{self._hidden} hidden images in {where} were left out")
        if self._loops:
            notes.append(f"{self._loops} links in {where} lead to folders read already and were left out")
        return notes


def listed(folder: Path) -> tuple[list[str], list[str]]:
    """The subfolders and files of a folder that may be data, each sorted by name.

    Raises:
        DataError: It cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise _unreadable(error) from error
    folders = [name for name, is_dir in found if is_dir and _is_data(name)]
    return folders, [name for name, is_dir in found if not is_dir]


def images_under(folder: Path, passed: PassedOver) -> Iterator[str]:
    """The paths of all images below a folder; links are followed, and each real folder is entered once.

    Raises:
        DataError: A folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise _unreadable(error) from error

    entered: set[str] = set()
    for parent, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(parent)
        if real in entered:
            passed.loop()
            subfolders.clear()
            continue
        entered.add(real)
        subfolders[:] = sorted(name for name in subfolders if _is_data(name))
        for name in files:
            if passed.keeps(name):
                yield os.path.join(parent, name)  # noqa: PTH118 - a Path an image costs minutes on large sets


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _is_data(folder: str) -> bool:
    return not _is_hidden(folder) and folder.lower() not in _LITTER


def _unreadable(error: OSError) -> DataError:
    return DataError(
        f"{error.filename}: the folder cannot be read: {error.strerror}", hint="check its permissions: ls -ld"
    )
