"""What the machine is, as far as the system says without torch."""

import os
import platform
from pathlib import Path

_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
_CPU = Path("/proc/cpuinfo")


def has_vnni() -> bool:
    """Whether this CPU multiplies bytes without saturating; no for an x86 CPU that Linux does not describe."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    return _CPU.is_file() and not _VNNI.isdisjoint(_CPU.read_text(errors="replace").split())


def cpu() -> str:
    """The name of the CPU."""
    lines = _CPU.read_text(errors="replace").splitlines() if _CPU.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int | None:
    """Number of cores that this process may use; None if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
