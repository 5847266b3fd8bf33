"""Run commands on a disk that is full at a random moment: a clear error, exit code 1, and the previous state.

    python -m tests.artifact.full_disk --moments 30

The disk is a small tmpfs in a mount namespace of its own, so this needs root. In half of the moments temporary files
lie on it as well.
"""

import ctypes
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from .commands import COMMANDS, Command, Results, asked_for, copied, divided, ended, names, prepare, started, told

_SIZE = 16 << 20  # bytes of the disk
_PAGE = 4096


def mounted(folder: Path) -> bool:
    """Give this process a small disk of its own at ``folder``; whether that is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    private, recursive, new_namespace = 1 << 18, 1 << 14, 0x20000
    if libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private | recursive, None):
        return False
    return libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={_SIZE}".encode()) == 0


def _fill(path: Path, left: int) -> None:
    """Leave so many bytes on the disk."""
    free = shutil.disk_usage(path.parent).free
    path.write_bytes(bytes(max(0, free - left) // _PAGE * _PAGE))


def once(command: Command, old: Path, disk: Path, share: float, *, temporary: bool) -> str:
    """Run a command with so small a share of what it needs left on the disk; the result, or the fault."""
    with copied(old, disk / "whole") as whole:
        before_it = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
        assert ended(started(command.new, whole)) == 0, (disk / "whole.log").read_text()
        written = [
            path for path in whole.rglob("*") if path.is_file() and before_it.get(path) != path.stat().st_mtime_ns
        ]
        need, new = sum(path.stat().st_size + _PAGE for path in written), command.state(whole)
    with copied(old, disk / "full") as full:
        before, listed = command.state(full) if command.old else None, names(full)
        _fill(disk / "filler", int(share * need))
        log = disk.parent / "log"
        tempfile.tempdir = str(disk) if temporary else None
        code = ended(started(command.new, full, lambda: _logged(log)))
        tempfile.tempdir = None
        said = log.read_text()
        log.unlink()
        (disk / "filler").unlink()
        if code == 0:
            return "had enough" if command.state(full) == new else "FAULT: exit code 0, and not the new state"
        if code != 1 or "error:" not in said or "Traceback" in said:
            return f"FAULT: exit code {code}: {said[-600:]}"
        if command.name != "train" and command.state(full) != before:
            return "FAULT: the previous state is not intact"
        extra = [name for name in names(full) if name not in listed and not command.name.startswith("train")]
        if extra:
            return f"FAULT: left behind {extra}"
        code = ended(started(command.new, full))
        if code or command.state(full) != new:
            return f"FAULT: with space again: exit code {code}: {(disk / 'full.log').read_text()[-600:]}"
        return "refused"


def _logged(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)


def fill(moments: int, seed: int, folder: Path, only: str) -> Results | None:
    """Fill the disk at so many moments in all; gives the results by command, or None if no disk can be mounted."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    if not mounted(disk):
        return None
    chosen, found = random.Random(seed), {}
    for command, numbers in divided(moments, COMMANDS, only):
        own = folder / command.name.replace(" ", "-")
        prepare(command, own)
        found[command.name] = Counter()
        for number in numbers:
            result = once(command, own, disk, chosen.random(), temporary=bool(number % 2))
            found[command.name][result] += 1
    return found


def apart(moments: int, seed: int, folder: Path, only: str = "") -> Results | None:
    """:func:`fill` in a process of its own, whose mounts nobody else sees."""
    kept = folder / "results.json"
    sys.stdout.flush()
    child = os.fork()
    if child:
        code = ended(child)
        if code:
            raise RuntimeError(f"the process with the full disk ended with {code}")
        results = json.loads(kept.read_text())
        return results and {name: Counter(counts) for name, counts in results.items()}
    code = 70
    try:
        kept.write_text(json.dumps(fill(moments, seed, folder, only)))
        code = 0
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    asked = asked_for(__doc__, moments=30)
    with tempfile.TemporaryDirectory() as there:
        found_there = apart(asked.moments, asked.seed, Path(there), asked.only)
    if found_there is None:
        print("skipped: a disk can be mounted by root only")
        sys.exit(77)
    sys.exit(told(found_there))
