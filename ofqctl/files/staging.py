"""Files are complete on the disk before they take their places: the hidden folder in which that happens.

The folder lies among the files that it is for. A process that writes holds the lock in it, so a second one is refused
and what a killed one left is told from what a live one is writing::

    FOLDER/.ofqctl-KEY/lock             locked as long as its process lives
    FOLDER/.ofqctl-KEY/fresh-*/files/   files that are being written
    FOLDER/.ofqctl-KEY/ready/files/     complete files, which are moved to FOLDER one by one
    FOLDER/.ofqctl-KEY/ready/removed    names that their predecessors had and they have not

The renaming of ``fresh-*`` to ``ready`` is the moment at which all files are replaced: readers look into ``ready``
first (:func:`located`), and whoever opens the folder next completes what a killed process began to move.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = ".ofqctl-"
_RUN = f"{PREFIX}run"
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EBADF)
_ELSEWHERE = (errno.EXDEV, errno.EBUSY)  # the file is on another disk, or a mount point


def run_stage(directory: Path) -> Path:
    """The hidden folder of a directory whose files are replaced together."""
    return directory / _RUN


def located(directory: Path, name: str) -> Path:
    """The path to read a file of a directory from, whose files are replaced together."""
    ready = run_stage(directory) / "ready"
    if ready.is_dir() and ((ready / "files" / name).exists() or name in _removed(ready)):
        return ready / "files" / name
    return directory / name


class Stage:
    """A hidden folder that this process has locked.

    Args:
        path: Path of the folder; it is made if it is not there.

    Attributes:
        path: Path of the folder.
        mode: Permissions of new files, by the user's umask.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mode = 0
        self._lock: int | None = None
        self._fresh = path / f"fresh-{secrets.token_hex(8)}"  # its own even where the disk knows no locks

    def open(self) -> None:
        """Make and lock the folder, and complete or remove what a killed process left in it.

        Raises:
            BlockingIOError: Another process has it.
            OSError: It cannot be made, or nothing can be written into it.
        """
        self._lock, alone = _locked(self.path)
        try:
            self._finish()
            for left in self.path.iterdir() if alone else ():
                if left.is_dir():
                    shutil.rmtree(left)
                elif left.name != "lock":
                    left.unlink()
            self._fresh.mkdir()
            probe, moved = self._fresh / "probe", self._fresh / "probed"
            probe.write_bytes(bytes(4096))
            _flush(probe)
            self.mode = stat.S_IMODE(probe.stat().st_mode)
            probe.replace(moved)
            self._clear()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Remove the folder, unless complete files in it could not be moved, and unlock it."""
        if self._lock is None:
            return
        self._clear()
        if not (self.path / "ready").exists():
            with suppress(OSError):
                (self.path / "lock").unlink(missing_ok=True)
                self.path.rmdir()  # not if another process has just made a lock of its own in it
        self.forget()

    def forget(self) -> None:
        """Let go of the lock, and leave the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def replacing(self, removed: Collection[str] = ()) -> Iterator[Path]:
        """A folder for new files, which replace those beside this one if the block succeeds.

        Args:
            removed: Names of files that are removed at the same moment, if the block does not write them anew.

        Raises:
            OSError: The disk is full or cannot be written.
        """
        fresh, ready = self._fresh, self.path / "ready"
        self._clear()
        files = fresh / "files"
        files.mkdir(parents=True)
        try:
            yield files
            gone = set(removed) - {path.name for path in files.iterdir()}
            (fresh / "removed").write_text("".join(f"{name}\n" for name in sorted(gone)), encoding="utf-8")
            for path in (*files.iterdir(), fresh / "removed"):
                path.chmod(self.mode)
                _flush(path)
            _flush(files)
            fresh.replace(ready)
            _flush(self.path)
        finally:
            self._clear()
        self._finish()

    def _finish(self) -> None:
        """Move complete files to their places; the folder they were in goes at one moment, and then bit by bit."""
        ready = self.path / "ready"
        if not ready.is_dir():
            return
        folder = self.path.parent
        for name in _removed(ready):
            (folder / name).unlink(missing_ok=True)
        for file in sorted((ready / "files").iterdir()):
            _move(file, Path(os.path.realpath(folder / file.name)))
        _flush(folder)
        ready.replace(self._fresh)
        self._clear()

    def _clear(self) -> None:
        """Remove incomplete files."""
        shutil.rmtree(self._fresh, ignore_errors=True)


@contextmanager
def only_one(folder: Path) -> Iterator[int | None]:
    """Lock a folder within the block, and give the handle of the lock; None if another process has it.

    A process that inherits the handle has the lock as long as it lives, whatever becomes of this one. The folder is
    made if it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        handle, _ = _locked(folder / f"{PREFIX}one")
    except BlockingIOError:
        yield None
        return
    try:
        yield handle
    finally:
        os.close(handle)


def sweep(folder: Path) -> None:
    """Complete or remove what killed processes left in ``folder``; what live ones write is left alone."""
    for path in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):
            stage = Stage(path)
            stage.open()
            stage.close()


def _locked(path: Path) -> tuple[int, bool]:
    """A handle that keeps ``path`` locked, and whether it does; some file systems know no locks."""
    while True:
        path.mkdir(exist_ok=True)
        try:
            handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # its former holder has removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(handle), (path / "lock").stat()):
                return handle, True
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle, False
            os.close(handle)
            raise
        os.close(handle)


def _removed(ready: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return (ready / "removed").read_text(encoding="utf-8").splitlines()
    return []


def _move(file: Path, target: Path) -> None:
    """Give a file its place; a target on another disk, or one that is a mount point, is written in place."""
    try:
        file.replace(target)
    except OSError as error:
        if error.errno not in _ELSEWHERE:
            raise
        shutil.copyfile(file, target)
        _flush(target)
        file.unlink()


def _flush(path: Path) -> None:
    """Have the disk hold the content of a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems do not know it for folders
            raise
    finally:
        os.close(handle)
