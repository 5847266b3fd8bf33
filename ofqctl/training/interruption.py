"""Handle SIGINT and SIGTERM: the current optimizer step is finished and the state saved, then training stops."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path


class Interrupted(BaseException):
    """Training was interrupted; its state is saved.

    Args:
        signum: The signal that was received.

    Attributes:
        directory: The run directory, if one is written.
    """

    directory: Path | None = None

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """The signal that was received, if any.

    Attributes:
        came: Number of the signal; 0 if there was none.
    """

    came: int = 0

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Record signals within the block instead of ending the process."""

        def note(signum: int, _frame: object) -> None:
            self.came = signum

        handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
