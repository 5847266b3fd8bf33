"""``ofqctl push``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ofqctl.cli import options
from ofqctl.cli.groups import flag, group
from ofqctl.cli.output import Table

if TYPE_CHECKING:
    from ofqctl.results.push import PushResult

EXAMPLES = (
    "ofqctl push runs/deit_small_patch16_224-w4a4 ORG/deit-small-w4a4",
    "ofqctl push runs/deit_small_patch16_224-w4a4 ORG/deit-small-w4a4 --dry-run",
    "ofqctl push runs/deit_tiny-w2a2 ORG/deit-tiny-w2a2 --private --training-state",
)


@group("Sending")
class _Sending:
    private: bool = flag("Make the new repository private.", "--private")
    overwrite: bool = flag("Replace the run in an existing repository by a new commit.", "--overwrite")
    training_state: bool = flag(
        "Send last.pt or latents.safetensors too, which training goes on from.", "--training-state"
    )
    dry_run: bool = flag("Print the card and the names of the files; send nothing.", "--dry-run")


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run directory, or hf-hub:ORG/NAME.", show_default=False)],
    repository: Annotated[
        str,
        typer.Argument(
            metavar="ORG/NAME",
            help="Repository on the Hugging Face hub; made if there is none.",
            show_default=False,
        ),
    ],
    *,
    sending: _Sending,
    printing: options.PrintOptions,
) -> None:
    """Send a run to the Hugging Face hub, with a card that says what it is and how good it is."""
    from ofqctl.jobs.push import PushRequest, push_run

    request = PushRequest(run, repository, **vars(sending))
    with printing.sink() as sink:
        result = push_run(request, sink.progress)
        sink.show(result, _render)


def _render(result: "PushResult") -> Iterator[Table | str]:
    if result.dry_run:
        yield result.card
    table = Table(["file", ">bytes"], title=f"hf-hub:{result.repository}")
    for file in result.files:
        table.add(file.name, file.bytes)
    yield table
    yield ""
    yield from (f"removed   {name}" for name in result.removed)
    if result.dry_run:
        yield "sent      nothing: --dry-run"
        return
    made = "new repository" if result.created else "repository"
    yield f"sent      to {result.url}, a {'private' if result.private else 'public'} {made}, commit {result.commit}"
    yield ""
    yield "Next:"
    yield f"  ofqctl evaluate hf-hub:{result.repository} --data DATA"
