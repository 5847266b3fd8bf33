"""Which steps of a study run, in which order, and which have been run before."""

import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock

from ofqctl.files import only_one
from ofqctl.machine import cores
from ofqctl.packages import version_of
from ofqctl.progress import Progress, silent
from ofqctl.results.failure import Failure
from ofqctl.results.study import RowState
from ofqctl.studies.estimates import Estimates
from ofqctl.studies.ledger import Ledger
from ofqctl.studies.records import Kept
from ofqctl.studies.rows import Row
from ofqctl.studies.running import CutOffError, Processes, argv_of, now, recorded
from ofqctl.studies.steps import Data, Output, Piece, Step

_POLL = 0.5  # seconds


class RowFailedError(Exception):
    """A row cannot be completed.

    Args:
        failure: Why a step of it failed.
        title: What failed, where that is not the row's own command.
    """

    def __init__(self, failure: Failure, title: str = "") -> None:
        super().__init__(failure.message)
        self.failure = failure if not title else failure.model_copy(update={"message": f"{title}: {failure.message}"})


class _BusyError(Exception):
    """Another process runs a step."""


class _LeftOutError(Exception):
    """There is no time for a row, or it cannot run here."""


@dataclass
class Outcome:
    """What became of a row in this run: its state, and why."""

    state: RowState
    failure: Failure | None = None
    reason: str | None = None


@dataclass(eq=False)
class Turn:
    """The turn of a step: whether it must be ``alone``, and how many others ran ``beside`` it at most."""

    alone: bool
    beside: int = 0


class Turns:
    """Steps beside each other, but for those that must be alone."""

    def __init__(self) -> None:
        self._running: list[Turn] = []
        self._changed = Condition()

    @contextmanager
    def taken(self, *, alone: bool) -> Iterator[Turn]:
        """Wait for one's turn."""
        turn = Turn(alone)
        with self._changed:
            self._changed.wait_for(lambda: not self._running or not (alone or self._running[0].alone))
            self._running.append(turn)
            for one in self._running:
                one.beside = max(one.beside, len(self._running) - 1)
        try:
            yield turn
        finally:
            with self._changed:
                self._running.remove(turn)
                self._changed.notify_all()


class Scheduler:
    """Runs rows.

    Args:
        ledger: What was run.
        estimates: About how long rows take.
        places: Where data lies.
        cwd: The folder in which commands run.
        jobs: Number of steps at once.
        seconds: Time after which no step begins; None for no limit.
        progress: Called to report progress.
    """

    def __init__(
        self,
        ledger: Ledger,
        estimates: Estimates,
        places: Mapping[str, str],
        cwd: Path,
        *,
        jobs: int = 1,
        seconds: float | None = None,
        progress: Progress = silent,
    ) -> None:
        self._ledger, self._places, self._cwd, self._jobs = ledger, places, cwd, jobs
        self._until = None if seconds is None else time.monotonic() + seconds
        self._progress, self._processes, self._turns, self._lock = progress, Processes(), Turns(), Lock()
        self._estimates = estimates
        self._threads = max(1, (cores() or jobs) // jobs) if jobs > 1 else None
        self.outcomes: dict[str, Outcome] = {}
        self._done = 0

    def run(self, rows: Sequence[Row]) -> dict[str, Outcome]:
        """Run rows, as far as they have not been run; what becomes of each, by name.

        Raises:
            KeyboardInterrupt: The user ended it; what has ended is kept.
        """
        waiting = deque(rows)
        self._progress("rows", 0, len(rows))
        with ThreadPoolExecutor(self._jobs) as pool:
            workers = [pool.submit(self._work, waiting, len(rows)) for _ in range(self._jobs)]
            try:
                while not all(worker.done() for worker in workers):
                    time.sleep(_POLL / 5)
            except BaseException:
                waiting.clear()
                self._processes.end()
                try:
                    wait(workers)
                finally:  # asked for a second time, or all of them have ended
                    self._processes.end(signal.SIGKILL)
                raise
        for worker in workers:
            worker.result()
        return self.outcomes

    def _work(self, waiting: "deque[Row]", total: int) -> None:
        put_off: set[str] = set()
        while True:
            try:
                row = waiting.popleft()
            except IndexError:
                return
            try:
                outcome = self._row(row, wait=row.name in put_off)
            except _BusyError:  # another process runs it: the others first
                put_off.add(row.name)
                waiting.append(row)
                continue
            with self._lock:
                self.outcomes[row.name] = outcome
                self._done += 1
                self._progress("rows", self._done, total)

    def _row(self, row: Row, *, wait: bool) -> Outcome:
        missing = [need for need in row.step.needs if version_of(need) is None]
        if missing:
            return Outcome("left out", reason=f"{', '.join(missing)}: not installed")
        try:
            for step in row.steps:
                self._ensure(row, step, wait=wait)
        except RowFailedError as failed:
            return Outcome("failed", failure=failed.failure)
        except _LeftOutError as left:
            return Outcome("left out", reason=str(left))
        except CutOffError as cut:
            return Outcome("failed", failure=Failure(kind="interruption", message=str(cut)))
        return Outcome("done")

    def _ensure(self, row: Row, step: Step, *, wait: bool) -> Kept:
        """Run a step unless it was run; what is kept of it."""
        place = self._ledger.place(step)
        while True:
            kept = self._ended(step)
            if kept is not None:
                return self._checked(row, step, kept)
            self._check_time(row)
            with only_one(place) as lock:
                if lock is not None:  # another process may just have run it
                    return self._checked(row, step, self._ended(step) or self._run(row, step, place, lock))
            if not wait:
                raise _BusyError
            time.sleep(_POLL)

    def _ended(self, step: Step) -> Kept | None:
        """What is kept of a step that needs no run: it is done, or has failed and is not to be retried."""
        kept = self._ledger.found(step)
        return None if kept is None or self._ledger.runs_again(kept) else kept

    def _checked(self, row: Row, step: Step, kept: Kept) -> Kept:
        if kept.record.failure is not None and kept.record.state == "left out":
            raise _LeftOutError(kept.record.failure.message)
        if kept.record.failure is not None:
            raise RowFailedError(kept.record.failure, "" if step == row.step else step.command)
        return kept

    def _run(self, row: Row, step: Step, place: Path, lock: int) -> Kept:
        with self._lock:
            self._progress(f"{row.name}: {step.command}", 0, None)
        with self._turns.taken(alone=step.alone) as turn:
            started = now()
            argv = argv_of(self._words(step, place), step.launcher)
            ended = self._processes.run(argv, folder=place, cwd=self._cwd, threads=self._threads, lock=lock)
        return Kept(place, recorded(place, self._ledger.identities.of(step), ended, started, turn.beside))

    def _check_time(self, row: Row) -> None:
        if self._until is None:
            return
        left = self._until - time.monotonic()
        needed = self._estimates.of(row)
        if left <= 0 or (needed is not None and needed > left):
            takes = "" if needed is None else f"takes about {needed / 60:.0f} min; "
            raise _LeftOutError(f"{takes}{max(left, 0) / 60:.0f} min of the time were left")

    def _words(self, step: Step, place: Path) -> list[str]:
        def written(piece: Piece) -> str:
            if isinstance(piece, Step):
                kept = self._ledger.found(piece)
                assert kept is not None and piece.makes is not None
                return str(kept.folder / piece.makes)
            if isinstance(piece, Data):
                return self._places[piece.name]
            return str(place / piece.name) if isinstance(piece, Output) else piece

        return ["".join(map(written, word)) for word in step.all_words]
