"""Diagnose the oscillation of weights from training states, runs and the OFQ authors' checkpoints."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName
from ofqctl.diagnosis.between import Snapshot, change_between
from ofqctl.diagnosis.findings import findings_of
from ofqctl.diagnosis.gates import gate_on
from ofqctl.diagnosis.opening import Opened, open_source
from ofqctl.diagnosis.report import Selection, report_on
from ofqctl.documents import fitting
from ofqctl.errors import DataError
from ofqctl.files import output_file, replaced_file
from ofqctl.jobs.live import LiveRequest, live_steps
from ofqctl.progress import Progress, silent
from ofqctl.results.analyze_oscillation import Analysis, Change, Gate, Live, Report

_ALL = Selection()
_STEPS = 30  # default number of live steps


@dataclass(frozen=True)
class AnalyzeRequest:
    """A request to analyze files.

    Attributes:
        sources: Run directories, runs on the hub, training states, OFQ checkpoints; of one model if there are several,
            oldest first.
        data: Labelled training images for live steps from the last one, or None.
        steps: Number of live steps; None takes 30 if there are images.
        selection: Which layers to report, and how much of each.
        wbits: Bits of the weights of an OFQ checkpoint; None takes them from its name.
        html: Path of the HTML report to write, or None.
        max_oscillating: Largest share of oscillating weights allowed in any layer, or None.
        max_flip_rate: Largest share of codes of any layer that may flip in an optimizer step, or None.
        device: Device for live steps.
        workers: Number of processes that decode images.
        seed: Seed of order and augmentation in live steps.
    """

    sources: Sequence[str | Path]
    data: DataSpec | None = None
    steps: int | None = None
    selection: Selection = _ALL
    wbits: int | None = None
    html: Path | None = None
    max_oscillating: float | None = None
    max_flip_rate: float | None = None
    device: DeviceName = "auto"
    workers: int = 0
    seed: int = 0


def analyze(request: AnalyzeRequest, progress: Progress = silent) -> Analysis:
    """Analyze the oscillation of weights in the files.

    Returns:
        The analysis, which is also written to ``request.html`` if that is given.

    Raises:
        OfqctlError: An error that the user can fix.
    """
    if request.steps is not None and request.data is None:
        raise DataError(f"--steps {request.steps}: live steps need training images", hint="--data DATA")
    with output_file(request.html, sources=map(Path, request.sources)):
        return _analyze(request, progress)


def _analyze(request: AnalyzeRequest, progress: Progress) -> Analysis:
    reports: list[Report] = []
    changes: list[Change] = []
    notes: list[str] = []
    previous: Snapshot | None = None
    opened: Opened | None = None
    for path in request.sources:
        progress(f"read {path}", 0, None)
        with fitting(f"{path}: its parts do not belong together"):
            opened = open_source(path, request.wbits)
            report, snapshot = report_on(opened, request.selection, partial(progress, "analyze"))
        if previous is not None:
            names = reports[-1].path, report.path
            changes.append(change_between(previous, snapshot, names, changes[-1] if changes else None))
        reports.append(report)
        notes += opened.notes
        previous = snapshot
    assert opened is not None
    live, more = _live(request, opened, progress)
    analysis = Analysis(
        checkpoints=tuple(reports),
        changes=tuple(changes),
        live=live,
        findings=findings_of(reports[-1], opened.recipe, changes, live),
        gates=_gates(request, reports[-1], live),
        notes=(*notes, *more),
    )
    if request.html is not None:
        from ofqctl.reports import oscillation_page

        progress("draw the report", 0, None)
        with replaced_file(request.html) as fresh:
            fresh.write_text(oscillation_page(analysis), encoding="utf-8", errors="backslashreplace")
    return analysis


def _live(request: AnalyzeRequest, opened: Opened, progress: Progress) -> tuple[Live | None, list[str]]:
    if request.data is None:
        return None, []
    steps = request.steps or _STEPS
    wanted = LiveRequest(request.data, steps, request.device, request.workers, request.seed)
    progress("live steps", 0, steps)
    return live_steps(opened, wanted, lambda done: progress("live steps", done, steps))


def _gates(request: AnalyzeRequest, report: Report, live: Live | None) -> tuple[Gate, ...]:
    gates = []
    if request.max_oscillating is not None:
        gates.append(gate_on("oscillating", request.max_oscillating, report, live))
    if request.max_flip_rate is not None:
        gates.append(gate_on("flips_per_step", request.max_flip_rate, report, live))
    return tuple(gates)
