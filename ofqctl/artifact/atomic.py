"""Write a directory atomically: readers find the old one or the new one, never a partial one."""

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ofqctl.errors import ArtifactError

_AT_FDCWD = -100  # relative paths start at the working directory
_RENAME_EXCHANGE = 2


def check_output(directory: Path, *, overwrite: bool) -> None:
    """Check before any work that ``directory`` can be written.

    Raises:
        ArtifactError: It exists and ``overwrite`` is not set, it is not a run directory, or its parent is read-only.
    """
    empty = directory.is_dir() and not any(directory.iterdir())
    if directory.exists() and not empty:
        if not overwrite:
            raise ArtifactError(f"{directory}: already exists", hint="--overwrite replaces it; --output names another")
        if not (directory.is_dir() and (directory / "config.json").is_file()):
            raise ArtifactError(f"{directory}: not a run directory, so it is not overwritten")
    parent = next(p for p in (directory.parent, *directory.parent.parents, Path()) if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{directory}: cannot be written: {parent} is not a writable folder")


@contextmanager
def replaced_directory(directory: Path) -> Iterator[Path]:
    """A new folder that replaces ``directory`` if the block succeeds, and is deleted otherwise.

    Every file is flushed to disk before the exchange. A killed process leaves ``directory`` unchanged.

    Raises:
        ArtifactError: The disk is full or cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", suffix=".partial", dir=directory.parent))
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be written: {error.strerror}") from error
    try:
        fresh.chmod(0o755)
        yield fresh
        for path in fresh.iterdir():
            _flush(path)
        _exchange(fresh, directory)
    except OSError as error:
        raise ArtifactError(f"{directory}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A new file that replaces ``path`` if the block succeeds, and is deleted otherwise.

    Raises:
        ArtifactError: The disk is full or cannot be written; ``path`` is unchanged.
    """
    fresh = path.with_name(f".{path.name}.partial")
    try:
        yield fresh
        _flush(fresh)
        fresh.replace(path)
        _flush(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as a RuntimeError
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise ArtifactError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _exchange(fresh: Path, directory: Path) -> None:
    """Exchange ``fresh`` and ``directory``; the old content is then at ``fresh``."""
    if not directory.exists():
        fresh.rename(directory)
    elif not _swap_at_once(fresh, directory):
        retired = fresh.with_suffix(".replaced")
        directory.rename(retired)
        try:
            fresh.rename(directory)
        except BaseException:
            retired.rename(directory)
            raise
        retired.rename(fresh)
    _flush(directory.parent)


def _swap_at_once(one: Path, other: Path) -> bool:
    """Exchange two names atomically, if the system supports it (Linux, with most file systems)."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
