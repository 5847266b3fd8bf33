"""Every output of this program, files and run directories, is checked ahead and written here.

A job claims its output before it works (:func:`output_directory`, :func:`output_file`), and writes it at the end
(:func:`replaced_files`, :func:`replaced_file`): readers find the old state or the new one, whatever happens meanwhile.
Links are followed, what is no regular file is written in place, and nothing is replaced that others wrote.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO
from zipfile import BadZipFile, ZipFile

from ofqctl.errors import ArtifactError, OfqctlError, write_fault
from ofqctl.files.staging import PREFIX, Stage, located, run_stage, sweep

WEIGHTS, TRAINING_STATE, TRACKER_FILE = "model.safetensors", "last.pt", "oscillation.safetensors"
LATENTS = "latents.safetensors"  # beside the codes of a run that no training state belongs to
NEXT_STATE = "next.pt"  # of a training whose run will replace the one that lies there
_OF_TRAINING = (TRAINING_STATE, NEXT_STATE, TRACKER_FILE, "summary.csv")
RUN_FILES = frozenset(("config.json", WEIGHTS, "recipe.yaml", "results.json", LATENTS, *_OF_TRAINING))
_BESIDES = ("logs", "wandb", "lost+found")  # a directory with nothing else counts as empty
_EXPORTED = {"architecture", "model_args", "data_config", "source", "quantization_config"}  # keys of our config.json
_TRAINED = (b"phase_step", b"total_epochs", b"plan")  # keys of our training states
_LINKS = 40  # the system follows no more
_NOTHING = 65536  # bytes; a disk with fewer is full

_Seen = tuple[int, int, int, int] | None
_held: dict[Path, Stage] = {}  # by path of the hidden folder
_seen: dict[Path, _Seen] = {}  # files to write, as they were when they were claimed


def is_ours(directory: Path) -> bool:
    """Whether this program wrote the run in ``directory``, or the training state in it."""
    with suppress(OSError, ValueError, RecursionError):
        values = json.loads(located(directory, "config.json").read_text(encoding="utf-8"))
        about = values.get("quantization_config") if isinstance(values, dict) else None
        method = about.get("quant_method") if isinstance(about, dict) else None
        return method == "ofqctl" or (method == "compressed-tensors" and values.keys() >= _EXPORTED)
    with suppress(OSError, BadZipFile, KeyError, StopIteration), ZipFile(located(directory, TRAINING_STATE)) as state:
        pickled = state.read(next(name for name in state.namelist() if name.endswith("/data.pkl")))
        return all(key in pickled for key in _TRAINED)
    return False


def is_empty(directory: Path) -> bool:
    """Whether nothing of anybody's is in ``directory``; this program's locks, and a new disk's, count for nothing."""
    return all(path.name in _BESIDES or path.name.startswith(PREFIX) for path in directory.iterdir())


@dataclass(frozen=True)
class Kind:
    """What lies in a directory whose files are replaced together.

    Attributes:
        words: What it is.
        option: The option that names the directory.
        is_in: Whether this program wrote what lies in a directory, and it is of this kind.
    """

    words: str
    option: str
    is_in: Callable[[Path], bool]


RUN = Kind("a run directory", "--output", is_ours)


@contextmanager
def output_directory(
    directory: Path, *, overwrite: bool, resumed: bool = False, sources: Iterable[Path] = (), kind: Kind = RUN
) -> Iterator[None]:
    """Keep other processes from writing ``directory`` within the block, which writes it with :func:`replaced_files`.

    The directory is made, and what will be done is tried: a file is written and moved. One that was made and is still
    empty is removed at the end.

    Args:
        directory: The run directory, or one of another ``kind``.
        overwrite: Whether the files of one that this program wrote may be replaced.
        resumed: Whether it is a run to continue.
        sources: Models and files that the run is made from.
        kind: What will lie in it.

    Raises:
        ArtifactError: It exists and ``overwrite`` is not set, it was not written by this program, it holds one of the
            sources, another process is writing it, or it cannot be written.
    """
    place = Path(os.path.realpath(directory))
    with ExitStack() as end:
        with _told(directory, place):
            _check_directory(directory, kind, overwrite=overwrite or resumed)
            if not resumed:
                _check_sources(directory, sources)
            _make_folders(place, end)
            end.enter_context(_staged(run_stage(place), directory))
            _check_directory(directory, kind, overwrite=overwrite or resumed)  # again, now that nobody else writes it
        yield


@contextmanager
def output_file(
    path: Path | None, *, overwrite: bool = True, make_folders: bool = False, sources: Iterable[Path] = ()
) -> Iterator[None]:
    """Keep other processes from writing ``path`` within the block, which writes it with :func:`replaced_file`.

    Args:
        path: The file, or something that is written in place, such as a pipe; None if nothing is written.
        overwrite: Whether an existing file may be replaced.
        make_folders: Whether to make the folder that it lies in.
        sources: Models and files that it is made from.

    Raises:
        ArtifactError: It exists and ``overwrite`` is not set, it is a folder, a source or a file of a run, another
            process is writing it, or it cannot be written.
    """
    if path is None:
        yield
        return
    if _in_place(path):
        if not os.access(path, os.W_OK):
            raise ArtifactError(f"{path}: cannot be written: Permission denied")
        yield
        return
    place = Path(os.path.realpath(path))
    with ExitStack() as end:
        with _told(path, place.parent):
            _check_file(path, place, sources, overwrite=overwrite)
            if make_folders:
                _make_folders(place.parent, end)
            stage = end.enter_context(_staged(_file_stage(place), path))
            (stage.path / place.name).touch()  # the name is not too long
            (stage.path / place.name).unlink()
        _seen[place] = _identity(place)
        end.callback(_seen.pop, place)
        yield


@contextmanager
def replaced_files(directory: Path, removed: Collection[str] = ()) -> Iterator[Path]:
    """A folder for new files, which replace those of ``directory`` at one moment if the block succeeds.

    Files with other names stay as they are.

    Args:
        directory: The directory.
        removed: Names of files that are removed at the same moment, if the block does not write them anew.

    Raises:
        ArtifactError: The disk is full or cannot be written; the directory is unchanged.
    """
    place = Path(os.path.realpath(directory))
    if run_stage(place) not in _held:
        _check_directory(directory, RUN, overwrite=True)
    with ExitStack() as end, _told(directory, place):
        _make_folders(place, end)
        stage = end.enter_context(_staged(run_stage(place), directory))
        yield end.enter_context(stage.replacing(removed))


@contextmanager
def replaced_file(path: Path) -> Iterator[Path]:
    """A new file that replaces ``path`` if the block succeeds; files beside it, of the same stem, go with it.

    Raises:
        ArtifactError: The disk is full or cannot be written, or somebody else has written the file since it was
            claimed; it is unchanged.
    """
    if _in_place(path):
        with TemporaryDirectory() as elsewhere, _told(path, Path(elsewhere)):
            fresh = Path(elsewhere) / path.name
            yield fresh
            with path.open("wb") as target:
                target.write(fresh.read_bytes())
        return
    place = Path(os.path.realpath(path))
    with _told(path, place.parent), _staged(_file_stage(place), path) as stage:
        with stage.replacing() as folder:
            yield folder / place.name
            if _seen.get(place, _identity(place)) != _identity(place):
                raise ArtifactError(f"{path}: another program has written it meanwhile; it is left as it is")
        if place in _seen:
            _seen[place] = _identity(place)


@contextmanager
def live_file(path: Path) -> Iterator[IO[bytes]]:
    """A file of this program's own that is read while it is written, such as a log; an earlier one is replaced.

    Raises:
        ArtifactError: It cannot be written.
    """
    with _told(path, path.parent), path.open("wb") as file:
        yield file


def _check_directory(directory: Path, kind: Kind, *, overwrite: bool) -> None:
    """Check that there is no directory, an empty one, or one of this kind that may be replaced."""
    if not os.path.lexists(directory) or not directory.exists():
        return
    if not directory.is_dir():
        raise ArtifactError(f"{directory}: is not a folder", hint=f"{kind.option} names another")
    if is_empty(directory) and not is_ours(directory):
        return
    if not overwrite:
        hint = f"--overwrite replaces it; {kind.option} names another"
        raise ArtifactError(f"{directory}: already exists", hint=hint)
    if not kind.is_in(directory):
        raise ArtifactError(
            f"{directory}: not {kind.words} of ofqctl, so it is not overwritten", hint=f"{kind.option} names another"
        )


def _check_file(path: Path, place: Path, sources: Iterable[Path], *, overwrite: bool) -> None:
    """Check that there is no file, or one that may be replaced."""
    if place.is_dir():
        raise ArtifactError(f"{path}: cannot be written: it is a folder")
    if place.exists() and not overwrite:
        raise ArtifactError(f"{path}: already exists", hint="--overwrite replaces it; --output names another")
    if place.name in RUN_FILES and is_ours(place.parent):
        raise ArtifactError(f"{path}: is a file of the run in that folder, and other output does not replace it")
    if any(_same(place, source) for source in sources):
        raise ArtifactError(f"{path}: is read by this command, so it is not replaced")


def _check_sources(directory: Path, sources: Iterable[Path]) -> None:
    """Check that no model or file that a run is made from lies in ``directory``."""
    for source in sources if is_ours(directory) else ():
        inside = source.name in RUN_FILES and _same(directory, source.parent)
        if source.exists() and (inside or _same(directory, source)):
            raise ArtifactError(
                f"{directory}: the command starts from this run and cannot replace it", hint="--output NEW"
            )


@contextmanager
def _staged(path: Path, output: Path) -> Iterator[Stage]:
    """The hidden folder of an output, which is locked; if this process has it already, that one."""
    if path in _held:
        yield _held[path]
        return
    sweep(path.parent)
    stage = Stage(path)
    try:
        stage.open()
    except BlockingIOError as error:
        raise ArtifactError(f"{output}: another process is writing it", hint="--output names another") from error
    _held[path] = stage
    try:
        yield stage
    finally:
        del _held[path]
        stage.close()


def _let_go() -> None:
    """A process that was forked does not keep the locks of its parent."""
    for stage in _held.values():
        stage.forget()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextmanager
def _told(output: Path, folder: Path) -> Iterator[None]:
    """Turn what fails because of the disk into an error that names the output."""
    try:
        yield
    except OfqctlError:
        raise
    except Exception as error:
        full = os.strerror(errno.ENOSPC) if _is_full(folder) else None
        reason = getattr(error, "strerror", None) or full or write_fault(error)
        if reason is None:
            raise
        raise ArtifactError(f"{output}: cannot be written: {reason}") from error


def _is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < _NOTHING
    return False


def _make_folders(folder: Path, end: ExitStack) -> None:
    """Make a folder and those above it; at the end, those that were made and are empty are removed."""
    for path in reversed((folder, *folder.parents)):
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            end.callback(_remove_empty, path)


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _file_stage(place: Path) -> Path:
    """The hidden folder of a file; two files beside each other have different ones."""
    return place.parent / (PREFIX + hashlib.sha256(os.fsencode(place.name)).hexdigest()[:16])


def _in_place(path: Path) -> bool:
    """Whether a path is a device, a pipe, or an open file of this process, which cannot be replaced."""
    with suppress(OSError):  # such as a name that is too long
        if path.exists() and not path.is_file() and not path.is_dir():
            return True
        for _ in range(_LINKS):
            if os.path.realpath(path.parent).startswith("/proc/"):
                return True
            if not path.is_symlink():
                return False
            path = path.parent / path.readlink()
    return False


def _identity(path: Path) -> _Seen:
    """What tells one file from another and from itself after it was written; None if there is none."""
    with suppress(FileNotFoundError):
        about = path.stat()
        return about.st_dev, about.st_ino, about.st_mtime_ns, about.st_size
    return None


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)
