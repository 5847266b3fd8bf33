"""Export: a run or a float model in, a verified ONNX file out."""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ofqctl.artifact import load_run
from ofqctl.artifact.atomic import replaced_file
from ofqctl.data import DataSpec, image_loader, open_data, synthetic_images
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import Subject, open_subject
from ofqctl.export import (
    Description,
    OnnxGraph,
    OnnxModel,
    Style,
    check_exactness,
    compare_end_to_end,
    normalize,
    set_metadata,
    to_pixels,
    write_graph,
)
from ofqctl.models import ModelRequest
from ofqctl.progress import Progress, silent

_EXACT_IMAGES = 2  # every product is compared on all values of these; more show nothing new


@dataclass(frozen=True)
class ExportRequest:
    """What to write, and what to check it on.

    Attributes:
        model: The path of a run directory or of the weights file in one, or a float model.
        style: How products are written.
        output: The file; None names it after the run or the model.
        batch: Images in one pass; None for any number.
        pixels: Whether normalization is part of the graph, whose input is then uint8.
        data: Images to verify on, labels used if there are some; None verifies on synthetic images.
        images: Number of images of the comparison end to end, >= 1.
        overwrite: Whether to replace an existing file.
        workers: Processes that decode images.
    """

    model: ModelRequest
    style: Style = "integer"
    output: Path | None = None
    batch: int | None = None
    pixels: bool = False
    data: DataSpec | None = None
    images: int = 64
    overwrite: bool = False
    workers: int = 0


def export_onnx(request: ExportRequest, progress: Progress = silent) -> dict[str, Any]:
    """Write the graph, verify it, and only then put the file in its place.

    Raises:
        OfqctlError: Something a person can mend, or the graph does not compute what the model does; nothing was
            written then.
    """
    started = time.perf_counter()
    progress("load the model", 0, None)
    subject = open_subject(request.model)
    if subject.kind == "onnx":
        raise ArtifactError(
            f"{subject.name}: is an ONNX file already", hint="export starts from a run or a float model"
        )
    output = request.output or default_file(subject, request.style)
    check_file(output, overwrite=request.overwrite)
    batches, total, about = _images(request, subject)
    progress("write the graph", 0, None)
    description = describe(subject, request.style, pixels=request.pixels)
    graph = write_graph(subject.model, description, request.style, request.batch)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(output) as fresh:
        verification = _verify(graph, subject, request, batches, total, progress) | about
        set_metadata(graph.model, verification=verification)
        fresh.write_bytes(graph.serialize())
    return {
        "output": str(output),
        "model": subject.name,
        "kind": subject.kind,
        "style": request.style if graph.products else None,
        "opset": graph.model.opset_import[0].version,
        "batch": request.batch,
        "input": "pixels" if request.pixels else "normalized",
        "bytes": output.stat().st_size,
        "run": _about_run(subject),
        "products": _about_products(graph),
        "verification": verification,
        "notes": [*subject.notes, *_notes(graph, request)],
        "seconds": round(time.perf_counter() - started, 2),
    }


def default_file(subject: Subject, style: Style) -> Path:
    """``RUN/model.onnx`` for a run, ``MODEL.onnx`` for a float model."""
    name = "model.onnx" if style == "integer" else f"model-{style}.onnx"
    return Path(subject.name) / name if subject.kind == "run" else Path(f"{subject.name}.onnx")


def check_file(path: Path, *, overwrite: bool) -> None:
    """Make sure that a file can be written.

    Raises:
        ArtifactError: It exists and ``overwrite`` is not set, or it is a folder.
    """
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder; --output names a file")
    if path.exists() and not overwrite:
        raise ArtifactError(f"{path}: already exists", hint="--overwrite replaces it, --output names another")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{path}: cannot be written: {parent} is not a writable folder")


def describe(subject: Subject, style: Style, *, pixels: bool) -> Description:
    """What a file of this model says about itself."""
    about = subject.about
    return Description(
        architecture=about["architecture"],
        num_classes=subject.labels.num_classes,
        model_args=about["model_args"],
        data_config=subject.data_config,
        label_names=None if subject.labels.names is None else list(subject.labels.names),
        recipe=about.get("recipe"),
        style=style if subject.kind == "run" else None,
        input="pixels" if pixels else "normalized",
        source=about["source"],
    )


def _images(
    request: ExportRequest, subject: Subject
) -> tuple[Iterable[tuple[Tensor, Tensor | None]], int | None, dict[str, Any]]:
    """Batches to verify on, how many images they are, and what to say about them."""
    size = request.batch or 16
    if request.data is None:
        synthetic = synthetic_images(subject.data_config, request.images, size)
        return [(images, None) for images in synthetic], request.images, {"data": "synthetic"}
    data = open_data(request.data, subject.labels)
    loader = image_loader(data, subject.data_config, batch_size=size, workers=request.workers, limit=request.images)
    labelled = data.labelled
    batches = ((images, labels if labelled else None) for images, labels in loader)
    return batches, loader.image_count, {"data": data.name}


def _verify(
    graph: OnnxGraph,
    subject: Subject,
    request: ExportRequest,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    total: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Exactness piece by piece and agreement end to end.

    Raises:
        ArtifactError: The graph does not compute what the model does.
    """
    seen = ((_as_seen(images, request, subject), labels) for images, labels in batches)
    first = next(seen)
    content = graph.serialize()
    progress("compare product by product", 0, None)
    wanted = request.batch or min(_EXACT_IMAGES, len(first[0]))
    images = first[0][torch.arange(wanted) % len(first[0])]
    fed = to_pixels(images, subject.data_config) if request.pixels else None
    exactness = check_exactness(content, graph.lowered, subject.model, images, fed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(content)
        end_to_end = compare_end_to_end(subject.model, OnnxModel(path), chain([first], seen), total, progress)
    faults = [*exactness.faults(), *end_to_end.faults()]
    if faults:
        raise ArtifactError(
            "\n  ".join(["the graph does not compute what the model does; nothing was written:", *faults])
        )
    return {"exactness": exactness.as_dict(), "end_to_end": end_to_end.as_dict()}


def _as_seen(images: Tensor, request: ExportRequest, subject: Subject) -> Tensor:
    """Images as the graph sees them: where it takes pixels, those next to them."""
    if not request.pixels:
        return images
    return normalize(to_pixels(images, subject.data_config), subject.data_config)


def _about_run(subject: Subject) -> dict[str, int] | None:
    """Where the bytes of the run are."""
    if subject.kind != "run":
        return None
    return load_run(Path(subject.name)).ledger.as_dict()


def _about_products(graph: OnnxGraph) -> dict[str, Any]:
    """How many products run on integers, and which do not and why."""
    reasons = {name: product.obstacle for name, product in graph.products.items() if product.obstacle}
    return {
        "integer": len(graph.products) - len(reasons),
        "float": len(reasons),
        "reasons": dict(Counter(reasons.values())),
        "left_float": [{"product": name, "reason": reason} for name, reason in reasons.items()],
    }


def _notes(graph: OnnxGraph, request: ExportRequest) -> list[str]:
    notes = []
    if not graph.products:
        notes.append("nothing in the model is quantized: the float model was written")
    if request.data is None:
        notes.append("verified on synthetic images; --verify-data takes real ones")
    return notes
