"""Measure inference of ONNX files side by side: latency, load time, memory, file size and accuracy."""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from ofqctl.data import DataSpec
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import of_onnx, of_run, open_run
from ofqctl.export import Description, OnnxModel, write_graph
from ofqctl.export.memory import peak_bytes
from ofqctl.jobs.export import describe
from ofqctl.jobs.measuring import measure, open_labelled
from ofqctl.models import build_architecture
from ofqctl.progress import Progress, silent
from ofqctl.training import Processes

FLOAT = "float"
_WARM_UP = 3  # number of passes that are not timed
_LOADS = 5


@dataclass(frozen=True)
class BenchInferRequest:
    """A request to measure inference.

    Attributes:
        model: An ONNX file, or a run directory, which is exported to ONNX for this.
        against: Another file or run, ``float`` for the float model of the same architecture, or None.
        threads: Number of threads that one operator may use, >= 1.
        batch_size: Number of images in one pass, >= 1.
        runs: Number of timed passes of each file, >= 1.
        data: Labelled images to measure the accuracy of both on, or None.
    """

    model: Path
    against: str | None = None
    threads: int = 1
    batch_size: int = 1
    runs: int = 30
    data: DataSpec | None = None


def bench_infer(request: BenchInferRequest, progress: Progress = silent) -> dict[str, Any]:
    """Measure median and least seconds of a pass and of loading, peak memory and file sizes.

    The files take turns, so that other load on the machine affects both.

    Raises:
        ArtifactError: A file cannot be loaded, or the files take different images.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = {"model": _file(request.model, Path(folder), progress)}
        if request.against is not None:
            files["against"] = _other(request.against, files["model"], Path(folder), progress)
        loads: dict[str, list[float]] = {name: [] for name in files}
        for done in range(_LOADS):
            progress("load", done, _LOADS)
            models = {name: _loaded(path, loads[name], request) for name, path in files.items()}
        latencies = _passes(models, request, progress)
        figures: dict[str, dict[str, Any]] = {
            name: {
                "file": request.against if name == "against" else str(request.model),
                "seconds_median": statistics.median(latencies[name]),
                "seconds_min": min(latencies[name]),
                "load_seconds_median": statistics.median(loads[name]),
                "peak_bytes": peak_bytes(str(path), batch=request.batch_size, threads=request.threads),
                "file_bytes": path.stat().st_size,
            }
            for name, path in files.items()
        }
        accuracy = _accuracy(files, request, progress)
    for name, top1 in accuracy.items():
        figures[name]["top1"] = top1
    compared = ("seconds_median", "seconds_min", "load_seconds_median", "peak_bytes", "file_bytes")
    ratio = {key: figures["against"][key] / figures["model"][key] for key in compared} if "against" in files else None
    return figures | {
        "ratio": ratio,
        "threads": request.threads,
        "batch_size": request.batch_size,
        "runs": request.runs,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "notes": ["the float model has random weights, which do not affect these figures"]
        if request.against == FLOAT
        else [],
    }


def _accuracy(files: dict[str, Path], request: BenchInferRequest, progress: Progress) -> dict[str, float]:
    """Top-1 accuracy of each file in percent, except for random weights."""
    if request.data is None:
        return {}
    found, alone = {}, Processes(0, 1, torch.device("cpu"))
    for name, path in files.items():
        if name == "against" and request.against == FLOAT:
            continue
        subject = of_onnx(path)
        loader = open_labelled(request.data, subject, batch_size=64, workers=0)
        found[name] = measure({name: subject.model}, loader, alone, progress)[name]["top1"]
    return found


def _file(model: Path, folder: Path, progress: Progress) -> Path:
    """The file itself, or the run exported to a file in ``folder``."""
    if model.suffix == ".onnx":
        if not model.is_file():
            raise ArtifactError(f"{model}: no such file")
        return model
    subject = of_run(open_run(model))
    progress(f"write {model} as ONNX", 0, None)
    description = describe(subject, "onnxruntime", pixels=False)
    return _written(subject.model, description, folder / f"{model.name}.onnx")


def _other(against: str, model: Path, folder: Path, progress: Progress) -> Path:
    if against != FLOAT:
        return _file(Path(against), folder, progress)
    said = OnnxModel(model).description
    if said is None:
        raise ArtifactError(f"{model}: was not written by ofqctl, so its float model is unknown", hint="--against FILE")
    progress("write the float model as ONNX", 0, None)
    built = build_architecture(
        said.architecture, num_classes=said.num_classes, model_kwargs=said.model_args, pretrained_cfg=None
    )
    with torch.no_grad():
        for parameter in built.parameters():  # equal constants would be stored once for all layers
            parameter.normal_(std=0.02)
    description = said.model_copy(update={"recipe": None, "target": None})
    return _written(built, description, folder / "float.onnx")


def _written(model: torch.nn.Module, description: Description, path: Path) -> Path:
    path.write_bytes(write_graph(model, description, "onnxruntime", None).serialize())
    return path


def _loaded(path: Path, seconds: list[float], request: BenchInferRequest) -> OnnxModel:
    start = time.perf_counter()
    model = OnnxModel(path, request.threads)
    seconds.append(time.perf_counter() - start)
    if model.batch not in (None, request.batch_size):
        raise ArtifactError(f"{path}: takes {model.batch} images at once, --batch-size is {request.batch_size}")
    return model


def _passes(models: dict[str, OnnxModel], request: BenchInferRequest, progress: Progress) -> dict[str, list[float]]:
    """Seconds of each timed pass, on the same noise images."""
    generator = np.random.default_rng(0)
    feeds = {}
    for name, model in models.items():
        size = tuple(length or 224 for length in model.size)
        pixels = generator.integers(0, 256, (request.batch_size, *size), dtype=np.uint8)
        feeds[name] = pixels if model.pixels else (pixels / np.float32(64.0) - 2.0).astype(np.float32)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for done in range(-_WARM_UP, request.runs):
        progress("passes", max(done, 0), request.runs)
        for name, model in models.items():
            start = time.perf_counter()
            model.infer(feeds[name])
            if done >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds
