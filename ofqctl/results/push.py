"""The result of ``ofqctl push``."""

from typing import Literal

from ofqctl.results.document import Document, Part


class PushedFile(Part):
    """A file in the repository, and its size in bytes."""

    name: str
    bytes: int


class PushResult(Document):
    """A run on the hub, or what would be sent there.

    Attributes:
        repository: ``ORG/NAME``.
        run: Path or name of the run.
        dry_run: Whether nothing was sent.
        url: Address of the repository; None for a dry run.
        commit: The commit; None for a dry run.
        private: Whether only its owner can see the repository; None for a dry run.
        created: Whether the repository is new; None for a dry run.
        files: The files that it has now, the card among them.
        removed: Names of an earlier run's files that are gone.
        card: Text of the card, its ``README.md``.
    """

    command: Literal["push"] = "push"
    repository: str
    run: str
    dry_run: bool
    url: str | None
    commit: str | None
    private: bool | None
    created: bool | None
    files: tuple[PushedFile, ...]
    removed: tuple[str, ...]
    card: str
