"""The errors a person can mend, and the closest-name search behind their hints.

Every message reads *where: what is wrong, the value seen, what is allowed*; the hint names the command
or option that mends it. Anything else that escapes is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class OfqctlError(Exception):
    """A fault that the person at the keyboard can mend.

    Args:
        message: Where it happened, what is wrong, the value seen and what is allowed.
        hint: The command or option that mends it, if there is one.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(OfqctlError):
    """A recipe, or an option that changes one, asks for something that cannot be done."""


class DataError(OfqctlError):
    """Images or labels are missing, unreadable or do not fit the model."""


class ModelError(OfqctlError):
    """A model name, checkpoint or weight is unknown, ambiguous or unusable."""


class ArtifactError(OfqctlError):
    """A run directory or exported file is missing, damaged, foreign or in the way."""


class DeviceError(OfqctlError):
    """The device asked for is not there."""


class ProcessError(OfqctlError):
    """One of several processes that work together is gone."""


class PackageError(OfqctlError):
    """An optional package is missing, or cannot do what was asked of it."""


def closest(name: str, names: Iterable[str]) -> str | None:
    """The entry of ``names`` that reads most like ``name``, or None if none comes near."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, names: Iterable[str]) -> str | None:
    """A hint that suggests the closest known name, or None."""
    match = closest(name, names)
    return f"did you mean '{match}'?" if match else None
