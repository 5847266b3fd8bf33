"""The device to compute on, how many threads compute, how the CPU treats numbers and memory."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Literal

import torch
from torch import nn

from ofqctl.errors import DeviceError

DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def pick_device(name: DeviceName) -> torch.device:
    """The device with this name; ``auto`` chooses CUDA, else MPS, else the CPU.

    Raises:
        DeviceError: The named device is not present.
    """
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, there in present.items() if there))
    if not present[name]:
        there = ", ".join(device for device, is_there in present.items() if is_there)
        raise DeviceError(f"--device {name}: not present on this machine; present: {there}", hint="--device auto")
    return torch.device(name)


_WORTH_THREADS = 500_000  # values of a model; below, threads wait for each other longer than they compute


@contextmanager
def suited_threads(*models: nn.Module) -> Iterator[None]:
    """Within the block torch computes with one thread if all ``models`` are too small for more.

    The operations of a model with fewer than 500,000 weights are over about when a second thread begins, and on a busy
    machine each of them waits until that thread gets its turn. A number set in the environment is obeyed, and a model
    whose weights torch does not hold, such as an ONNX file, changes nothing.
    """
    before = torch.get_num_threads()
    given = {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys()
    if before == 1 or given or not all(0 < _values(model) < _WORTH_THREADS for model in models):
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _values(model: nn.Module) -> int:
    """Number of values in parameters and buffers, which hold the codes of a run read from disk."""
    return sum(tensor.numel() for tensor in chain(model.parameters(), model.buffers()))


@contextmanager
def denormals_flushed(device: torch.device) -> Iterator[None]:
    """Within the block the CPU treats denormal numbers as 0, because they make training several times slower."""
    flushed = device.type == "cpu" and torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if flushed:
            torch.set_flush_denormal(False)


_TRIM, _MAP = -1, -3  # glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD
_LARGEST_MAP = 32 << 20  # bytes; what glibc raises M_MMAP_THRESHOLD to by itself, at most
_KEPT = 1 << 30  # bytes


@contextmanager
def memory_kept() -> Iterator[None]:
    """Within the block, freed memory of the CPU is kept for the next tensors; at its end it is given back.

    Otherwise each large tensor gets new pages from the system, which clears them first: a quarter of the time of
    evaluation. It affects Linux with glibc, and nothing elsewhere.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_MAP, _KEPT)
    libc.mallopt(_TRIM, _KEPT)
    try:
        yield
    finally:
        libc.mallopt(_MAP, _LARGEST_MAP)
        libc.mallopt(_TRIM, 2 * _LARGEST_MAP)
        libc.malloc_trim(0)
