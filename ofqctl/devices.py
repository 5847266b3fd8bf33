"""Choose the device to compute on, and how the CPU treats numbers and memory."""

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

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
