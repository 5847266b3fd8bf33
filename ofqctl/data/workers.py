"""Batches from loader processes, which end with a message if a process cannot pass its batch on."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from ofqctl.errors import DataError

_SHARED = Path("/dev/shm")
_AHEAD = 2  # batches that each process makes ahead; DataLoader's own default
_PATIENCE = 600  # seconds that one batch may take
MORE_SHARED_MEMORY = "--workers 0, a smaller batch, or more shared memory (docker: `--shm-size 2g` or `--ipc host`)"


def load_batches(samples: Dataset[Any], *, workers: int, batch_bytes: int, **options: Any) -> Iterator[Any]:
    """Yield the batches of a `DataLoader`.

    Args:
        samples: What is loaded.
        workers: Number of loader processes; 0 loads in this process.
        batch_bytes: Size of one batch.
        options: Further arguments of `DataLoader`.

    Raises:
        DataError: The shared memory is too small for the batches of that many processes; or a process was killed, or
            has not passed a batch on for ten minutes.
    """
    if workers:
        _check_shared_memory(workers, batch_bytes)
        options |= {"timeout": _PATIENCE, "prefetch_factor": _AHEAD}
    try:
        yield from DataLoader(samples, num_workers=workers, worker_init_fn=_leave_signals, **options)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        raise DataError(f"--workers {workers}: {str(error).splitlines()[0]}", hint=MORE_SHARED_MEMORY) from error


def _leave_signals(_worker: int) -> None:
    """Let the process that reads the batches decide what a signal to all processes means: it still needs batches.

    A second SIGTERM ends a loader process, as that process may wish.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _number, _frame: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def free_shared_memory() -> int | None:
    """Bytes through which processes can pass batches on; None where the system does not limit them by a disk."""
    if not _SHARED.is_dir():
        return None
    disk = os.statvfs(_SHARED)
    return disk.f_bavail * disk.f_frsize


def _check_shared_memory(workers: int, batch_bytes: int) -> None:
    free, needed = free_shared_memory(), (workers * _AHEAD + 1) * batch_bytes
    if free is not None and free < needed:
        raise DataError(
            f"--workers {workers}: their batches need {needed / 1e6:.1f} MB of shared memory at a time; "
            f"{_SHARED} has {free / 1e6:.1f} MB free",
            hint=MORE_SHARED_MEMORY,
        )
