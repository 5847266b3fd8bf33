"""Kill commands at random moments: readers find the old state or the new one, and the next save leaves nothing behind.

    python -m tests.artifact.kill --moments 100

Half of the moments are anywhere in the command, half within a few milliseconds of a moment at which it has files
flushed to the disk.
"""

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import commands
from .commands import COMMANDS, OTHERS, Command, Results, copied, divided, ended, names, prepare, started

_NEAR = 0.004  # seconds


@dataclass
class Known:
    """What a command does if nobody kills it.

    Attributes:
        old: Folder with the old state.
        states: The old state and the new one.
        names: Names of the files after it.
        seconds: How long it takes.
        flushes: When it has files flushed, in seconds from its start.
    """

    old: Path
    states: tuple[object, object]
    names: list[str]
    seconds: float
    flushes: list[float]


def know(command: Command, folder: Path) -> Known:
    """Run a command to its end."""
    prepare(command, folder / "old")
    with copied(folder / "old", folder / "whole") as whole:
        before = command.state(whole) if command.old else None
        began, moments = time.monotonic(), folder / "flushes"
        assert ended(started(command.new, whole, lambda: _recording(moments))) == 0, whole.with_suffix(
            ".log"
        ).read_text()
        seconds = time.monotonic() - began
        flushes = [float(line) - began for line in moments.read_text().split()]
        return Known(folder / "old", (before, command.state(whole)), names(whole), seconds, flushes)


def _recording(moments: Path) -> None:
    fsync = os.fsync

    def recorded(handle: int) -> None:
        with moments.open("a") as file:
            file.write(f"{time.monotonic()}\n")
        fsync(handle)

    os.fsync = recorded


def kill_once(command: Command, known: Known, folder: Path, moment: float) -> str:
    """Kill the command at a moment and give it again; the result is `old`, `new`, `between`, or the fault."""
    with copied(known.old, folder / "killed") as killed:
        child = started(command.new, killed)
        time.sleep(max(0.0, moment))
        os.kill(child, signal.SIGKILL)
        ended(child)
        try:
            state = command.state(killed)
        except Exception as error:  # noqa: BLE001
            return f"FAULT after the kill: {type(error).__name__}: {error}"
        epochs = command.name.startswith("train")  # those before the last are states of their own
        if state not in known.states and not epochs:
            return "FAULT after the kill: neither the old state nor the new one"
        code = ended(started(command.new, killed))
        if code or command.state(killed) != known.states[1] or names(killed) != known.names:
            left = sorted(set(names(killed)) ^ set(known.names))
            log = (folder / "killed.log").read_text()[-500:]
            return f"FAULT at the next save: exit code {code}, left behind {left}: {log}"
        if command.old and (killed / "run" / OTHERS).read_text() != "mine":
            return "FAULT: a file of others was changed"
        return {0: "old", 1: "new"}.get(known.states.index(state) if state in known.states else 2, "between")


def kill(moments: int, seed: int, folder: Path, only: str = "") -> Results:
    """Kill quantize, export and train, or only one of them, at so many moments in all; gives the results by command."""
    chosen, found = random.Random(seed), {}
    for command, numbers in divided(moments, [command for command in COMMANDS if command.name != "html"], only):
        own = folder / command.name.replace(" ", "-")
        known = know(command, own)
        found[command.name] = Counter()
        for number in numbers:
            near = chosen.choice(known.flushes) + chosen.uniform(-_NEAR, _NEAR)
            moment = near if number % 2 else chosen.uniform(0, known.seconds)
            found[command.name][kill_once(command, known, own, moment)] += 1
    return found


if __name__ == "__main__":
    asked = commands.asked_for(__doc__, moments=100)
    with tempfile.TemporaryDirectory() as place:
        results = kill(asked.moments, asked.seed, Path(place), asked.only)
    sys.exit(commands.told(results))
