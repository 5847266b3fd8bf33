"""Where float weights are from, in words: a run says so in its config.json, and commands find them by it again."""

RANDOM = "random initialization"
_CHECKPOINT, _RUN = "checkpoint ", "run "


def of_checkpoint(path: object) -> str:
    """The source of weights that were read from a file."""
    return f"{_CHECKPOINT}{path}"


def of_run(name: str) -> str:
    """The source of weights that were those of a run, by its path or its name on the hub."""
    return f"{_RUN}{name}"


def checkpoint_in(source: str) -> str | None:
    """The path of the weight file that ``source`` names; None if it is another kind of source."""
    return source.removeprefix(_CHECKPOINT) if source.startswith(_CHECKPOINT) else None


def run_in(source: str) -> str | None:
    """The path or hub name of the run that ``source`` names; None if it is another kind of source."""
    return source.removeprefix(_RUN) if source.startswith(_RUN) else None
