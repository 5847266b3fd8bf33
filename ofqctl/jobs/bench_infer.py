"""Measure inference of files side by side: latency, load time, memory, file size and accuracy."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ofqctl.data import DataSpec, image_loader, open_data, synthetic_images
from ofqctl.errors import ArtifactError, OfqctlError
from ofqctl.evaluation import Subject, of_model, of_onnx, of_run, open_run
from ofqctl.export import Description, OnnxModel, Runtime, Target, write_graph
from ofqctl.export import openvino as in_openvino
from ofqctl.export.memory import peak_bytes
from ofqctl.export.peers import PEERS, build_peer
from ofqctl.export.profile import by_kind, seconds_by_operator
from ofqctl.jobs.export import describe
from ofqctl.jobs.measuring import measure, open_labelled
from ofqctl.models import ModelRequest, build_architecture, load_model
from ofqctl.progress import Progress, silent
from ofqctl.results.bench import BenchInferResult, MeasuredFile, Pass, Ratio
from ofqctl.training import Processes

MODEL, FLOAT = "model", "float"
_WARM_UP = 3  # number of passes that are not timed
_LOADS = 5
_CALIBRATION = 128  # images


@dataclass(frozen=True)
class BenchInferRequest:
    """A request to measure inference.

    Attributes:
        model: An ONNX file, or a run directory, which is exported to ONNX for this.
        against: Other files or runs; ``float`` for the float model of the same architecture; or what other programs
            make of it: ``ort-dynamic``, ``ort-static``, ``nncf``.
        runtime: What runs the files.
        threads: Number of threads that one operator may use, >= 1.
        batch_sizes: Numbers of images in one pass, >= 1 each.
        runs: Number of timed passes of each file and batch size, >= 1.
        data: Labelled images to measure the accuracy on, or None.
        calibration: Images for programs that need some; None uses synthetic ones.
        profile: Whether to measure the time of each type of operator; ONNX Runtime only.
    """

    model: Path
    against: tuple[str, ...] = ()
    runtime: Runtime = "onnxruntime"
    threads: int = 1
    batch_sizes: tuple[int, ...] = (1,)
    runs: int = 30
    data: DataSpec | None = None
    calibration: DataSpec | None = None
    profile: bool = False


@dataclass
class _Files:
    """The files to measure.

    Attributes:
        paths: By name: ``model``, then as given in ``against``.
        seconds: CPU seconds to make those that were made for this.
        random: Whether the float model has random weights.
    """

    paths: dict[str, Path]
    seconds: dict[str, float] = field(default_factory=dict)
    random: bool = False


def bench_infer(request: BenchInferRequest, progress: Progress = silent) -> BenchInferResult:
    """Measure CPU and wall-clock seconds of a pass, of loading, peak memory and file sizes.

    The files take turns, so that other load on the machine affects all of them.

    Raises:
        ArtifactError: A file cannot be loaded, or the files take different images.
        PackageError: A program is not installed.
    """
    if request.runtime == "openvino":
        in_openvino.package()
        if request.profile:
            raise ArtifactError("--profile: measures ONNX Runtime", hint="leave --runtime out")
    elif "nncf" in request.against:
        raise ArtifactError("--against nncf: its models run in OpenVINO", hint="--runtime openvino")
    with tempfile.TemporaryDirectory() as folder:
        files = _files(request, Path(folder), progress)
        loads: dict[str, list[float]] = {name: [] for name in files.paths}
        for done in range(_LOADS):
            progress("load", done, _LOADS)
            models = {name: _loaded(path, loads[name], request) for name, path in files.paths.items()}
        passes = {size: _passes(models, size, request, progress) for size in request.batch_sizes}
        top1 = _accuracy(files, models, request, progress)
        figures = {}
        for name, path in files.paths.items():
            operators = _operators(path, models[name], request) if request.profile else None
            figures[name] = MeasuredFile(
                file=str(request.model) if name == MODEL else name,
                batches={str(size): _summed(passes[size][name]) for size in request.batch_sizes},
                load_seconds_median=statistics.median(loads[name]),
                peak_bytes=_peak(path, request),
                file_bytes=sum(part.stat().st_size for part in (path, *_beside(path))),
                make_cpu_seconds=files.seconds.get(name),
                operators=operators,
                kinds=None if operators is None else by_kind(operators),
                top1=top1.get(name),
            )
    ours = figures[MODEL]
    return BenchInferResult(
        files=figures,
        ratio={name: _ratio(ours, other) for name, other in figures.items() if name != MODEL},
        runtime=f"{request.runtime} {_version(request.runtime)}",
        threads=request.threads,
        batch_sizes=request.batch_sizes,
        runs=request.runs,
        notes=("the float model has random weights, which do not affect its speed and size",) if files.random else (),
    )


def _ratio(ours: MeasuredFile, other: MeasuredFile) -> Ratio:
    """How many times as much as ours the other takes."""
    return Ratio(
        batches={size: _times(one, other.batches[size]) for size, one in ours.batches.items()},
        load_seconds_median=other.load_seconds_median / ours.load_seconds_median,
        peak_bytes=other.peak_bytes / ours.peak_bytes if ours.peak_bytes and other.peak_bytes else None,
        file_bytes=other.file_bytes / ours.file_bytes,
    )


def _times(ours: Pass, other: Pass) -> Pass:
    return Pass(
        cpu_seconds_median=other.cpu_seconds_median / ours.cpu_seconds_median,
        seconds_median=other.seconds_median / ours.seconds_median,
        seconds_min=other.seconds_min / ours.seconds_min,
    )


def _operators(path: Path, model: OnnxModel, request: BenchInferRequest) -> dict[str, float]:
    return seconds_by_operator(path, _noise(model, request.batch_sizes[0]), request.threads, request.runs)


def _files(request: BenchInferRequest, folder: Path, progress: Progress) -> _Files:
    """The files as they are, exported, or built for this."""
    target: Target = "onnxruntime" if request.runtime == "onnxruntime" else "openvino"
    files = _Files({MODEL: _file(request.model, target, folder, progress)})
    needs_float = [name for name in request.against if name == FLOAT or name in PEERS]
    if needs_float:
        source, subject = _float(files.paths[MODEL], folder, progress)
        files.random = subject is None
        if files.random and needs_float != [FLOAT]:
            raise ArtifactError(
                f"{request.model}: the float model that it was made of is not there for other programs to quantize",
                hint="--against float.onnx compares with any file",
            )
    for name in request.against:
        if name == FLOAT:
            files.paths[name] = source
        elif name in PEERS:
            assert subject is not None
            progress(f"quantize by {name}", 0, None)
            images = [] if name == "ort-dynamic" else list(_calibration(request, subject))
            files.paths[name], files.seconds[name] = build_peer(name, source, folder, images)
        else:
            files.paths[name] = _file(Path(name), target, folder, progress)
    return files


def _file(model: Path, target: Target, folder: Path, progress: Progress) -> Path:
    """The file itself, or the run exported to a file in ``folder``."""
    if model.suffix in (".onnx", ".xml"):
        if not model.is_file():
            raise ArtifactError(f"{model}: no such file")
        return model
    subject = of_run(open_run(model))
    progress(f"write {model} as ONNX", 0, None)
    path = folder / f"{model.name}.onnx"
    return _written(subject.model, describe(subject, target, pixels=False), target, path)


def _float(model: Path, folder: Path, progress: Progress) -> tuple[Path, Subject | None]:
    """The float model of the same architecture as a file, and as a subject if it has its own weights."""
    said = OnnxModel(model).description
    if said is None:
        raise ArtifactError(f"{model}: was not written by ofqctl, so its float model is unknown", hint="--against FILE")
    progress("write the float model as ONNX", 0, None)
    description = said.model_copy(update={"recipe": None, "target": None, "input": "normalized"})
    subject = None
    with suppress(OfqctlError):  # its weights may have been moved, or be on a hub that is out of reach
        classes = said.num_classes or None
        request = ModelRequest(said.source, num_classes=classes, kwargs=said.model_args, features=classes is None)
        subject = of_model(load_model(request))
    if subject is None:
        built = build_architecture(
            said.architecture, num_classes=said.num_classes, model_kwargs=said.model_args, pretrained_cfg=None
        )
        with torch.no_grad():
            for parameter in built.parameters():  # equal constants would be stored once for all layers
                parameter.normal_(std=0.02)
    else:
        built = subject.model
    return _written(built.eval(), description, "onnxruntime", folder / "float.onnx"), subject


def _written(model: torch.nn.Module, description: Description, target: Target, path: Path) -> Path:
    path.write_bytes(write_graph(model, description, target, None).serialize())
    return path


def _calibration(request: BenchInferRequest, subject: Subject) -> Iterator[torch.Tensor]:
    if request.calibration is None:
        return iter(synthetic_images(subject.data_config, _CALIBRATION, 32))
    data = open_data(request.calibration, purpose="calibrate")
    loader = image_loader(data, subject.data_config, batch_size=32, limit=_CALIBRATION)
    return (images for images, _ in loader)


def _loaded(path: Path, seconds: list[float], request: BenchInferRequest) -> OnnxModel:
    start = time.perf_counter()
    model = OnnxModel(path, request.threads, request.runtime)
    seconds.append(time.perf_counter() - start)
    others = [size for size in request.batch_sizes if model.batch not in (None, size)]
    if others:
        raise ArtifactError(f"{path}: takes {model.batch} images at once, --batch-size is {others[0]}")
    return model


def _noise(model: OnnxModel, count: int) -> NDArray[Any]:
    """The same noise images for every file, in the form that it takes."""
    size = tuple(length or 224 for length in model.size)
    pixels = np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8)
    return pixels if model.pixels else (pixels / np.float32(64.0) - 2.0).astype(np.float32)


def _passes(
    models: dict[str, OnnxModel], count: int, request: BenchInferRequest, progress: Progress
) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall-clock seconds of each timed pass, by file."""
    feeds = {name: _noise(model, count) for name, model in models.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for done in range(-_WARM_UP, request.runs):
        progress(f"passes of {count}", max(done, 0), request.runs)
        for name, model in models.items():
            wall, cpu = time.perf_counter(), time.process_time()
            model.infer(feeds[name])
            if done >= 0:
                seconds[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return seconds


def _summed(passes: list[tuple[float, float]]) -> Pass:
    cpu, wall = zip(*passes, strict=True)
    return Pass(
        cpu_seconds_median=statistics.median(cpu), seconds_median=statistics.median(wall), seconds_min=min(wall)
    )


def _peak(path: Path, request: BenchInferRequest) -> int | None:
    if request.runtime != "onnxruntime":
        return None
    return peak_bytes(str(path), batch=max(request.batch_sizes), threads=request.threads)


def _beside(path: Path) -> list[Path]:
    """Further files that belong to a file."""
    return [path.with_suffix(".bin")] if path.suffix == ".xml" else []


def _version(runtime: Runtime) -> str:
    module = in_openvino.package() if runtime == "openvino" else __import__(runtime)
    return str(module.__version__).partition("-")[0]


def _accuracy(
    files: _Files, models: dict[str, OnnxModel], request: BenchInferRequest, progress: Progress
) -> dict[str, float]:
    """Top-1 accuracy of each file in percent, except for random weights."""
    if request.data is None:
        return {}
    like, alone = of_onnx(files.paths[MODEL]), Processes(0, 1, torch.device("cpu"))
    subjects = {name: model for name, model in models.items() if not (files.random and name == FLOAT)}
    for model in subjects.values():
        model.data_config = model.data_config or like.data_config
    loader = open_labelled(request.data, like, batch_size=64, workers=0)
    return {name: found.accuracy.top1 for name, found in measure(subjects, loader, alone, progress).items()}
