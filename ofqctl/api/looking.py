"""``ofqctl.inspect`` and ``ofqctl.analyze_oscillation``."""

from pathlib import Path

from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName
from ofqctl.diagnosis.report import Selection
from ofqctl.jobs.analyze import AnalyzeRequest, analyze
from ofqctl.jobs.inspect import InspectRequest
from ofqctl.jobs.inspect import inspect as look
from ofqctl.progress import Progress, silent
from ofqctl.results.analyze_oscillation import Analysis
from ofqctl.results.inspect import InspectRunResult
from ofqctl.results.onnx import InspectOnnxResult


def inspect(path: str | Path, progress: Progress = silent) -> InspectRunResult | InspectOnnxResult:
    """Bits, grid and bytes of every module of a run or an ONNX file.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    return look(InspectRequest(Path(path)), progress)


def analyze_oscillation(
    *paths: str | Path,
    data: str | Path | None = None,
    steps: int | None = None,
    layers: str = "*",
    top: int = 5,
    html: str | Path | None = None,
    max_oscillating: float | None = None,
    max_flip_rate: float | None = None,
    device: DeviceName = "auto",
    workers: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> Analysis:
    """Whether, where and why weights oscillate, and how to stop it.

    Args:
        *paths: Run directories, training states and checkpoints of the OFQ authors; of one model, oldest first.
        data: Labelled training images for live steps from the last one, or None.
        steps: Number of live steps; None takes 30 if there are images.
        layers: Shell-style pattern of module names.
        top: Number of channels and trajectories to report.
        html: HTML report to write, or None.
        max_oscillating: Largest share of oscillating weights allowed in any layer, 0 to 1; ``gates`` has the answer.
        max_flip_rate: Largest share of the codes of any layer that may flip in a step, 0 to 1.
        device: Device for live steps.
        workers: Number of processes that decode images.
        seed: Seed of order and augmentation in live steps.
        progress: Called to report progress.

    Raises:
        OfqctlError: An error that the user can fix.
    """
    request = AnalyzeRequest(
        sources=[Path(path) for path in paths],
        data=None if data is None else DataSpec(str(data)),
        steps=steps,
        selection=Selection(layers, top),
        html=None if html is None else Path(html),
        max_oscillating=max_oscillating,
        max_flip_rate=max_flip_rate,
        device=device,
        workers=workers,
        seed=seed,
    )
    return analyze(request, progress)
