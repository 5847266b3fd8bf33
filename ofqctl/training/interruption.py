"""SIGINT and SIGTERM: the step under way ends and the state is saved, then training stops."""

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path


class Interrupted(BaseException):
    """Training was asked to stop; its state is saved.

    Args:
        signum: The signal that asked.

    Attributes:
        directory: The run, where one is written.
    """

    directory: Path | None = None

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """Which signal came, if any.

    Attributes:
        came: Its number; 0 if none.
    """

    came: int = 0

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Note signals in here instead of obeying them."""

        def note(signum: int, _frame: object) -> None:
            self.came = signum

        handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
