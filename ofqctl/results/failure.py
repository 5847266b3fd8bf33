"""What ``--json`` prints in place of a result."""

from typing import Literal

from ofqctl.results.document import FORMAT, Part


class Failure(Part):
    """Why a command failed.

    Attributes:
        kind: What is at fault: ``recipe``, ``study``, ``data``, ``model``, ``artifact``, ``device``, ``process``,
            ``package`` or ``output``; ``usage`` of the program; a ``bug`` of it; or ``interruption``.
        message: Where it happened, what is wrong, the value found and what is allowed.
        hint: The command or option that fixes it, if there is one.
    """

    kind: str
    message: str
    hint: str | None = None


class FailureDocument(Part):
    """A command that failed.

    Attributes:
        format: Version of this document.
        error: Why it failed.
    """

    format: Literal[1] = FORMAT
    error: Failure
