"""``ofqctl doctor``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ofqctl.cli import options
from ofqctl.cli.output import Table, megabytes

if TYPE_CHECKING:
    from ofqctl.results.doctor import DoctorResult

EXAMPLES = ("ofqctl doctor", "ofqctl doctor --json")


def doctor(printing: options.PrintOptions) -> None:
    """Show versions and the machine, and what is missing for which command."""
    from ofqctl.jobs.doctor import examine

    with printing.sink() as sink:
        sink.show(examine(), _render)


def _render(result: "DoctorResult") -> Iterator[Table | str]:
    machine = result.machine
    shared = machine.shared_memory
    table = Table(["part", "here"])
    for name, version in result.versions.items():
        if version is not None:
            table.add(name, version)
    table.add("system", machine.system)
    table.add("CPU", f"{machine.cpu}, VNNI: {'yes' if machine.vnni else 'no'}")
    table.add("cores, threads of torch", f"{machine.cores}, {machine.threads}")
    table.add("memory", megabytes(machine.memory))
    if shared is not None:
        table.add("free shared memory", megabytes(shared))
    table.add("devices", ", ".join(machine.devices))
    table.add("compiler", machine.compiler or "none")
    table.add("methods of other packages", ", ".join(result.methods_of_others) or "none")
    yield table
    yield ""
    if not result.findings:
        yield "Nothing is missing."
        return
    found = Table(["missing", "which means", "remedy"])
    for finding in result.findings:
        found.add(finding.missing, finding.means, finding.remedy or "")
    yield found
