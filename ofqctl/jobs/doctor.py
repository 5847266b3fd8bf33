"""What this machine has of what the commands need, and what is missing for which of them."""

import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import entry_points

import torch

from ofqctl import __version__
from ofqctl.data.workers import MORE_SHARED_MEMORY, free_shared_memory
from ofqctl.errors import PackageError
from ofqctl.machine import cores, cpu, has_vnni
from ofqctl.packages import OPTIONAL, version_of
from ofqctl.registry import ENTRY_POINTS, load_plugins
from ofqctl.results.doctor import DoctorResult, Machine, Missing

_PACKAGES = ("torch", "torchvision", "timm", "onnx", "onnxruntime", "datasets", "safetensors", "huggingface-hub")
_COMPILERS = ("c++", "g++", "clang++")
_LITTLE = 2**30  # bytes of shared memory


def examine() -> DoctorResult:
    """Versions, the machine, and what is missing."""
    return DoctorResult(
        versions={
            "ofqctl": __version__,
            "python": platform.python_version(),
            **{name: version_of(name) for name in (*_PACKAGES, *OPTIONAL)},
        },
        machine=Machine(
            system=platform.platform(terse=True),
            cpu=cpu(),
            vnni=has_vnni(),
            cores=cores(),
            threads=torch.get_num_threads(),
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            shared_memory=free_shared_memory(),
            devices=tuple(_devices()),
            compiler=_compiler(),
        ),
        methods_of_others=tuple(f"{entry.name} ({entry.value})" for entry in entry_points(group=ENTRY_POINTS)),
        findings=tuple(Missing(missing=what, means=means, remedy=remedy) for what, means, remedy in _findings()),
    )


def _findings() -> Iterator[tuple[str, str, str | None]]:
    for name, package in OPTIONAL.items():
        if version_of(name) is None:
            yield name, f"not for {package.purpose}", package.install
    try:
        load_plugins()
    except PackageError as error:
        yield "methods of another package", error.message, error.hint
    if not has_vnni():
        means = "8 bits gain less speed, ONNX Runtime is told to multiply exactly, OpenVINO's 8-bit weights saturate"
        yield "VNNI", means, None
    if _compiler() is None:
        yield "a C++ compiler", "--compile has no effect", "install g++ or clang++, or set CXX"
    if len(_devices()) == 1:
        yield "a GPU", "training computes on the CPU", None
    shared = free_shared_memory()
    if shared is not None and shared < _LITTLE:
        yield "shared memory", f"{shared / 1e6:.0f} MB are free: few batches with --workers", MORE_SHARED_MEMORY
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        means = "OMP_WAIT_POLICY=ACTIVE: training is many times slower beside another process"
        yield "threads that sleep while they wait", means, "unset OMP_WAIT_POLICY"


def _devices() -> list[str]:
    found = ["cpu"]
    found += [f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count())]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def _compiler() -> str | None:
    """The program that ``torch.compile`` finds."""
    asked = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [asked] if asked else _COMPILERS)), None)
