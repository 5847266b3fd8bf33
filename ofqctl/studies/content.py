"""Digests of what figures depend on: data, files, recipes and the code that computes."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import ofqctl
from ofqctl.errors import DataError
from ofqctl.recipe import catalogue
from ofqctl.registry import ENTRY_POINTS

_PACKAGE = Path(ofqctl.__file__).parent
# They read requests, write files, run studies and show results; no figure comes from them.
_AROUND = {
    "jobs/study.py",
    *("api", "cli", "files", "hub", "reports", "results", "studies"),
    *("errors.py", "machine.py", "packages.py", "progress.py"),
}
_BLOCK = 2**20

Listing = tuple[tuple[str, int, int], ...]


def listing(path: Path) -> Listing:
    """Path within ``path``, size and time of change in nanoseconds of every file, in order.

    Raises:
        DataError: There is no such file or folder.
    """
    if path.is_file():
        found = path.stat()
        return (("", found.st_size, found.st_mtime_ns),)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    return tuple(sorted(_listed(path, "")))


def _listed(folder: Path, ahead: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _listed(Path(entry.path), f"{ahead}{entry.name}/")
            elif entry.is_file():
                found = entry.stat()
                yield f"{ahead}{entry.name}", found.st_size, found.st_mtime_ns


def content(path: Path, files: Listing) -> str:
    """Digest of names and contents of these files."""
    summed = hashlib.sha256()
    for name, size, _ in files:
        summed.update(f"{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with (path / name if name else path).open("rb") as file:
            while block := file.read(_BLOCK):
                summed.update(block)
    return summed.hexdigest()


def of_file(path: Path) -> str:
    """Digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_recipe(name: str, folder: Path) -> str:
    """Digest of a recipe's file: a shipped one, or one in ``folder``."""
    own = folder / name
    return of_file(own if own.is_file() else catalogue.path_of(name))


@cache
def of_code() -> str:
    """Digest of what figures come from: sources, without those around it, and versions of plug-ins."""
    summed = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        inside = path.relative_to(_PACKAGE)
        if _AROUND.isdisjoint((inside.parts[0], inside.as_posix())):
            summed.update(f"{inside.as_posix()}\0".encode())
            summed.update(path.read_bytes())
    for entry in sorted(entry_points(group=ENTRY_POINTS)):
        summed.update(f"{entry.value} {entry.dist and entry.dist.version}\0".encode())
    return summed.hexdigest()


class Digests:
    """Digests of files and folders, computed anew only where sizes or times of change are others.

    Args:
        known: What was computed before, by path: a digest of the listing, and of the content.
    """

    def __init__(self, known: Mapping[str, tuple[str, str]] | None = None) -> None:
        self.known = dict(known or {})
        self._now: dict[str, str] = {}

    def of(self, path: Path) -> str:
        """The digest of a file or a folder.

        Raises:
            DataError: It is not there, or cannot be read.
        """
        key = str(path)
        if key not in self._now:
            try:
                files = listing(path)
                seen = hashlib.sha256(repr(files).encode("utf-8", "surrogateescape")).hexdigest()
                before = self.known.get(key)
                digest = before[1] if before is not None and before[0] == seen else content(path, files)
            except OSError as error:
                raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
            self.known[key] = seen, digest
            self._now[key] = digest
        return self._now[key]
