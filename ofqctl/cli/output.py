"""All output: the result goes to stdout, as tables or one JSON document, everything else to stderr."""

import math
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from ofqctl.cli import garbage
from ofqctl.cli.printing import finish, prints, say_json, say_prose, tell, tell_prose, visible
from ofqctl.cli.tables import Table, print_table
from ofqctl.files.sizes import megabytes

__all__ = ["Aside", "Part", "Sink", "Table", "duration", "megabytes", "print_table"]

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from ofqctl.results.document import Document

_SECONDS_BETWEEN_LINES = 10.0


class Aside(str):
    """A line that is no result, such as what to do next."""

    __slots__ = ()


Part = Table | str
Shown = TypeVar("Shown", bound="Document")


class Sink:
    """Where a command's result, progress, notes and errors go.

    On a terminal, lines end between words, and progress is a bar. In a pipe or a file, tables have all columns, however
    wide, and progress is a line when work starts and ends, and every ten seconds in between, with the time left. Of
    several processes started by torchrun, only the first prints.

    Args:
        as_json: Print the result as one JSON document.
        quiet: Print the result alone.
        verbose: Print what each part of the work takes; there are no bars then.
    """

    def __init__(self, *, as_json: bool, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json = as_json
        self._quiet, self._verbose = quiet, verbose
        self._part, self._entered, self._since = "", 0.0, 0.0
        self._prints = prints()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._began: dict[str, tuple[float, int]] = {}

    def __enter__(self) -> Self:
        garbage.go_on()
        self._entered = self._since = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_bars()
        if self._verbose and self._prints:
            self._time("")
            total = time.monotonic() - self._entered
            tell(f"in all {total:.2f} s, and {time.process_time():.2f} s on the CPU, libraries loaded first included")

    def progress(self, work: str, done: int, total: int | None, detail: str = "") -> None:
        """Show the progress of some work, see `ofqctl.progress.Progress`, with a few words of detail."""
        if self._quiet or not self._prints:
            return
        if self._verbose:
            self._time(work)
        elif sys.stderr is not None and sys.stderr.isatty():
            self._move_bar(work, done, total, detail)
            return
        now = time.monotonic()
        if done <= self._began.setdefault(work, (now, done))[1]:  # the work begins, or begins again
            self._began[work] = now, done
        began, first = self._began[work]
        finished = total is not None and done >= total > 0
        due = now - self._printed.get(work, -math.inf) >= _SECONDS_BETWEEN_LINES
        if due or finished:
            self._printed[work] = now
            far = "" if not (done or total) else f" {done}" if total is None else f" {done}/{total}"
            if total and first < done < total and now - began >= _SECONDS_BETWEEN_LINES:
                far += f", {duration((now - began) / (done - first) * (total - done))} left"
            tell(f"{work}{far}{detail and f'  {detail}'}")

    def show(self, result: Shown, render: Callable[[Shown], Iterable[Part]]) -> None:
        """Print a result.

        Args:
            result: The result; its ``notes`` also go to stderr.
            render: Creates the tables and lines to print from the result.
        """
        if not self._prints:
            return
        self._stop_bars()
        if self.as_json:
            say_json(result.model_dump(mode="json"))
        else:
            for part in render(result):
                if isinstance(part, Table):
                    print_table(part)
                elif not (self._quiet and isinstance(part, Aside)):
                    say_prose(part)
        finish()
        for note in () if self._quiet else result.notes:
            tell_prose(f"note: {note}")

    def _time(self, work: str) -> None:
        """Tell how long the part of the work took that ends where another begins."""
        if work != self._part:
            if self._part:
                tell(f"{self._part}: {time.monotonic() - self._since:.2f} s")
            self._part, self._since = work, time.monotonic()

    def _move_bar(self, work: str, done: int, total: int | None, detail: str) -> None:
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if work not in self._tasks:
            for task in self._tasks.values():
                self._bars.update(task, visible=False)
            self._tasks[work] = self._bars.add_task(visible(work), total=total)
        description = visible(f"{work}  {detail}" if detail else work)
        self._bars.update(self._tasks[work], completed=done, total=total, description=description)

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def duration(seconds: float) -> str:
    """Format a time, such as ``40 s``, ``3 min`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _new_bars() -> "Bars":
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        SpinnerColumn("line"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
