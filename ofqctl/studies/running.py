"""Run one step: a command in a process of its own, measured, and its record."""

import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from ofqctl.documents import parse_json, read_text
from ofqctl.errors import OfqctlError, StudyError
from ofqctl.files import live_file, replaced_file
from ofqctl.results.failure import Failure
from ofqctl.studies import provenance
from ofqctl.studies.measures import printed_figures
from ofqctl.studies.records import DOCUMENT, LOG, Record, write_record
from ofqctl.studies.steps import PYTHON, Identity

LEFT_OUT = 77  # exit code of a script that cannot run here, as test programs of other projects have it
_CUT_OFF = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
_TOLD = 300  # characters of a log's last line
_TAIL = 2**16  # bytes at the end of a log in which that is looked for
_NOT_STARTED = 127  # exit code of what could not be started, as a shell has it


class CutOffError(Exception):
    """A command was ended before it had ended itself; the next run of the study goes on with it."""


def argv_of(words: list[str], launcher: str = "") -> list[str]:
    """The arguments of the process that runs a command with these words."""
    if words[0] == PYTHON:
        return [sys.executable, *words[1:]]
    started = [sys.executable, "-P"] if not launcher else shlex.split(launcher)  # what lies beside a study is no module
    if started[0] == "torchrun":
        started = [sys.executable, "-m", "torch.distributed.run", *started[1:]]
    return [*started, "-m", "ofqctl", *words]


class Processes:
    """The processes that run now, so that they can be ended."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._ended = False
        self._lock = Lock()

    def run(self, argv: list[str], *, folder: Path, cwd: Path, threads: int | None, lock: int) -> "_Ended":
        """Run a process to its end; stdout becomes the document in ``folder``, and stderr the log.

        Args:
            argv: Its arguments.
            folder: Folder of the step.
            cwd: Where it runs.
            threads: Number of threads that libraries are told to use, if the user has not.
            lock: Handle of the step's lock, which the process keeps as long as it lives.

        Raises:
            CutOffError: A signal ended it.
        """
        environment = dict(os.environ)
        if threads is not None:
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        began = time.monotonic()
        with replaced_file(folder / DOCUMENT) as fresh, live_file(folder / LOG) as log, fresh.open("wb") as out:
            with self._lock:
                if self._ended:
                    raise CutOffError("was not begun")
                try:
                    process = subprocess.Popen(
                        argv,
                        cwd=cwd,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=log,
                        pass_fds=(lock,),
                    )
                except OSError as error:
                    log.write(f"{argv[0]}: cannot be started: {error.strerror}\n".encode())
                    return _Ended(_NOT_STARTED, 0.0, 0.0, 0)
                self._running.add(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            with self._lock:
                self._running.discard(process.pid)
            code = process.returncode = os.waitstatus_to_exitcode(status)
        if -code in _CUT_OFF or code - 128 in _CUT_OFF or (code and self._ended):
            raise CutOffError(_ending(code))
        unit = 1 if sys.platform == "darwin" else 1024
        return _Ended(code, time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send all of them a signal; none begins any more."""
        with self._lock:
            self._ended = True
            for pid in self._running:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)


class _Ended:
    """How a process ended: its exit ``code``, ``seconds``, ``cpu_seconds`` and ``peak_bytes``."""

    def __init__(self, code: int, seconds: float, cpu_seconds: float, peak_bytes: int) -> None:
        self.code, self.seconds, self.cpu_seconds, self.peak_bytes = code, seconds, cpu_seconds, peak_bytes


def recorded(folder: Path, identity: Identity, ended: "_Ended", started: datetime, beside: int) -> Record:
    """Write the record of a step that ended."""
    failure = _failure(folder, ended.code)
    record = Record(
        key=identity.key,
        loose=identity.loose,
        data=dict(identity.data),
        code=identity.code,
        state="done" if failure is None else "left out" if ended.code == LEFT_OUT else "failed",
        failure=failure,
        seconds=round(ended.seconds, 3),
        cpu_seconds=round(ended.cpu_seconds, 3),
        peak_bytes=ended.peak_bytes,
        started=started.isoformat(timespec="milliseconds"),
        commit=provenance.commit(),
        machine=provenance.machine(),
        versions=provenance.versions(),
        beside=beside,
    )
    write_record(folder, record)
    return record


def now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def _failure(folder: Path, code: int) -> Failure | None:
    """Why a command failed; None if it did not."""
    document = _document(folder)
    if code == 0 and isinstance(document, dict):
        try:
            printed_figures(document)
        except StudyError as error:
            return Failure(kind="output", message=error.message)
        return None
    said = document.get("error") if isinstance(document, dict) else None
    if isinstance(said, dict):
        return Failure(kind=str(said.get("kind")), message=str(said.get("message")), hint=said.get("hint"))
    if code == 0:
        return Failure(kind="output", message="it printed no JSON document")
    if code == LEFT_OUT:
        return Failure(kind="process", message=_last_line(folder / LOG))
    return Failure(kind="process", message=f"{_ending(code)}: {_last_line(folder / LOG)}")


def _ending(code: int) -> str:
    number = -code if code < 0 else code - 128
    names = {one.value: one.name for one in signal.Signals}
    return f"ended by {names[number]}" if number in names else f"ended with exit code {code}"


def _document(folder: Path) -> Any:
    with suppress(OfqctlError):
        return parse_json(read_text(folder / DOCUMENT), DOCUMENT)
    return None


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        text = file.read().decode(errors="replace")
    lines = text.strip().splitlines() or ["it printed nothing"]
    return lines[-1][:_TOLD]
