"""Errors that a user can fix, and the search for similar names behind their hints.

Every message reads *where: what is wrong, the value found, what is allowed*; the hint names the command or option that
fixes it. Any other exception is a bug and keeps its traceback.
"""

import difflib
import errno
import os
from collections.abc import Iterable


class OfqctlError(Exception):
    """An error that the user can fix.

    Args:
        message: Where it happened, what is wrong, the value found and what is allowed.
        hint: The command or option that fixes it, if there is one.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(OfqctlError):
    """A recipe, or an option that changes one, asks for something that cannot be done."""


class StudyError(OfqctlError):
    """A study asks for something that cannot be done, or its folder holds something else."""


class DataError(OfqctlError):
    """Images or labels are missing, unreadable or do not fit the model."""


class ModelError(OfqctlError):
    """A model name, checkpoint or weight is unknown, ambiguous or unusable."""


class ArtifactError(OfqctlError):
    """A run directory or exported file is missing, damaged, foreign or in the way."""


class DeviceError(OfqctlError):
    """The requested device is not present."""


class ProcessError(OfqctlError):
    """One of several cooperating processes has ended."""


class PackageError(OfqctlError):
    """An optional package is missing, or does not support what was requested."""


class OutputError(OfqctlError):
    """What was computed, and where asked for written, cannot be printed."""


def closest(name: str, names: Iterable[str]) -> str | None:
    """The entry of ``names`` most similar to ``name``, or None if none is similar."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str | None:
    """A hint that suggests the closest known name, or None."""
    match = closest(name, names)
    return f"did you mean '{match}'?" if match else None


_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)


def write_fault(error: BaseException) -> str | None:
    """Why a file could not be written, or None if that is not what ``error`` says.

    PyTorch, safetensors and NumPy do not report a failed write as the system does.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    said = str(error)
    if "PytorchStreamWriter" in said or "inline_container" in said:
        return said.splitlines()[0]
    return said if type(error).__name__ == "SafetensorError" and "os error" in said else None


def disk_fault(error: BaseException) -> str | None:
    """Why the disk failed, with the file if it is known; None if ``error`` is of another kind."""
    if isinstance(error, OSError):
        missing = error.filename is None and "temporary directory" in str(error)
        if error.errno not in _OF_THE_DISK and not missing:
            return None
        reason = os.strerror(error.errno) if error.errno in _OF_THE_DISK else str(error.strerror)
        return reason if error.filename is None else f"{error.filename}: {reason}"
    return write_fault(error)
