"""Choose the device to compute on."""

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
