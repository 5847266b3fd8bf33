"""Send a run to the Hugging Face hub, with a card that says what it is."""

from dataclasses import dataclass
from pathlib import Path

from ofqctl.evaluation import open_run
from ofqctl.hub.card import card
from ofqctl.hub.contents import contents_of
from ofqctl.hub.pulling import TRAINING
from ofqctl.hub.pushing import CARD, check_repository, push
from ofqctl.progress import Progress, silent
from ofqctl.results.push import PushedFile, PushResult


@dataclass(frozen=True)
class PushRequest:
    """A request to send a run to the hub.

    Attributes:
        run: A run directory, the weights file in one, or a run that is on the hub already.
        repository: ``ORG/NAME``.
        private: Whether a new repository is private.
        overwrite: Whether the run in an existing repository is replaced.
        training_state: Whether the state that training goes on from goes along.
        dry_run: Whether the card is made and nothing is sent.
    """

    run: str | Path
    repository: str
    private: bool = False
    overwrite: bool = False
    training_state: bool = False
    dry_run: bool = False


def push_run(request: PushRequest, progress: Progress = silent) -> PushResult:
    """Read and check the run, write its card, and send both as one commit.

    Raises:
        ArtifactError: The run is damaged, or nothing could be sent; the repository is as it was.
        ModelError: The run is on the hub, and could not be downloaded.
    """
    repository = check_repository(request.repository)
    progress("read the run", 0, None)
    run = open_run(request.run, also=TRAINING if request.training_state else ())
    contents = contents_of(run, training_state=request.training_state)
    text = card(contents, repository)
    sizes = {name: path.stat().st_size for name, path in contents.files.items()} | {CARD: len(text.encode())}
    sent = None
    if not request.dry_run:
        progress("send to the hub", 0, None)
        sent = push(contents.files, text, repository, private=request.private, overwrite=request.overwrite)
    return PushResult(
        repository=repository,
        run=run.name,
        dry_run=request.dry_run,
        url=None if sent is None else sent.url,
        commit=None if sent is None else sent.commit,
        private=None if sent is None else sent.private,
        created=None if sent is None else sent.created,
        files=tuple(PushedFile(name=name, bytes=size) for name, size in sizes.items()),
        removed=() if sent is None else sent.removed,
        card=text,
        notes=contents.notes,
    )
