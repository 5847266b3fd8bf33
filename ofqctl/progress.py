"""How long work tells how far it is: a stage, what is done, and how much there is."""

from typing import Protocol


class Progress(Protocol):
    """Called with the name of the stage, the images or steps done, and their number if it is known."""

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Tell that ``done`` of ``total`` are done."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Tell nobody."""
