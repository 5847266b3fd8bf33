"""How long-running work reports its progress."""

from typing import Protocol


class Progress(Protocol):
    """A function that is called to report progress, with counts of images, steps or blocks."""

    def __call__(self, work: str, done: int, total: int | None) -> None:
        """Report that ``done`` of ``total`` (None if it is not known) are done of the work called ``work``."""


def silent(work: str, done: int, total: int | None) -> None:
    """Report nothing."""
