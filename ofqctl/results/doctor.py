"""The result of ``ofqctl doctor``."""

from typing import Literal

from ofqctl.results.document import Document, Part


class Machine(Part):
    """The machine.

    Attributes:
        system: Operating system.
        cpu: Name of the CPU.
        vnni: Whether it multiplies bytes without saturating.
        cores: Number of cores that this process may use.
        threads: Number of threads of torch.
        memory: Bytes of memory.
        shared_memory: Bytes of free shared memory; None where that is not limited.
        devices: Devices to compute on.
        compiler: Path of the C++ compiler; None if there is none.
    """

    system: str
    cpu: str
    vnni: bool
    cores: int | None
    threads: int
    memory: int
    shared_memory: int | None
    devices: tuple[str, ...]
    compiler: str | None


class Missing(Part):
    """What is missing, what that means, and the remedy if there is one."""

    missing: str
    means: str
    remedy: str | None


class DoctorResult(Document):
    """What this machine has, and what is missing for which command.

    Attributes:
        versions: Version of each package; None if it is not installed.
        machine: The machine.
        methods_of_others: Packages that register methods.
        findings: What is missing.
    """

    command: Literal["doctor"] = "doctor"
    versions: dict[str, str | None]
    machine: Machine
    methods_of_others: tuple[str, ...]
    findings: tuple[Missing, ...]
