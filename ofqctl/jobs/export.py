"""Export a run or a float model to a verified ONNX file."""

import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from ofqctl.data import DataSpec, image_loader, open_data, synthetic_images
from ofqctl.errors import ArtifactError
from ofqctl.evaluation import Subject, open_subject
from ofqctl.export import (
    Description,
    EndToEnd,
    Exactness,
    OnnxGraph,
    OnnxModel,
    Runtime,
    Target,
    about_runtimes,
    check_exactness,
    compare_end_to_end,
    normalize,
    openvino,
    set_metadata,
    to_pixels,
    write_graph,
)
from ofqctl.files import output_file, replaced_file
from ofqctl.jobs.embedding import check_embeds
from ofqctl.machine import has_vnni
from ofqctl.models import ModelRequest
from ofqctl.models.outputs import giving_tokens
from ofqctl.progress import Progress, silent
from ofqctl.results.export import AboutRuntime, ExportOnnxResult, ProductInFloat, Products, Verification

_EXACT_IMAGES = 2  # number of images on which every product is compared; more would not help


@dataclass(frozen=True)
class ExportRequest:
    """A request to export a model to ONNX.

    Attributes:
        model: The path of a run directory or of the weights file in one, or a float model; or what was opened already,
            which needs an ``output``.
        target: What the graph is for.
        output: Path of the file; None derives it from the run or the model.
        batch: Number of images in one pass; None for any number.
        pixels: Whether normalization is part of the graph, which then takes uint8 pixels.
        data: Images to verify on (labels are used if there are any); None uses synthetic images.
        images: Number of images for the end-to-end comparison, >= 1.
        overwrite: Whether to replace an existing file.
        workers: Number of processes that decode images.
        strict: Whether a product that a runtime computes in float is an error.
        tokens: Whether patch tokens are an output beside the embedding of a model without a classifier.
    """

    model: ModelRequest | Subject
    target: Target = "onnxruntime"
    output: Path | None = None
    batch: int | None = None
    pixels: bool = False
    data: DataSpec | None = None
    images: int = 64
    overwrite: bool = False
    workers: int = 0
    strict: bool = False
    tokens: bool = False

    @property
    def sources(self) -> list[Path]:
        """What the model is read from."""
        return self.model.paths if isinstance(self.model, ModelRequest) else []


def export_onnx(request: ExportRequest, progress: Progress = silent) -> ExportOnnxResult:
    """Write the graph, verify it, and only then create the file.

    Raises:
        OfqctlError: An error that the user can fix, or the graph does not compute the same as the model; nothing was
            written.
    """
    with ExitStack() as claimed:
        return _export_onnx(request, progress, claimed)


def _export_onnx(request: ExportRequest, progress: Progress, claimed: ExitStack) -> ExportOnnxResult:
    started = time.perf_counter()
    progress("load the model", 0, None)
    subject = request.model if isinstance(request.model, Subject) else open_subject(request.model)
    if subject.kind == "onnx":
        raise ArtifactError(
            f"{subject.name}: is already an ONNX file", hint="export starts from a run or a float model"
        )
    check_embeds(subject, {"--tokens": request.tokens})
    if request.tokens:
        claimed.enter_context(giving_tokens(subject.model))
    if request.target == "openvino":
        openvino.package()
    output = request.output or default_file(subject, request.target)
    if (output.suffix == ".xml") and request.target != "openvino":
        raise ArtifactError(f"{output}: OpenVINO's IR", hint="--target openvino")
    written = [output, output.with_suffix(".bin")] if output.suffix == ".xml" else [output]
    for path in written:
        claimed.enter_context(
            output_file(path, overwrite=request.overwrite, make_folders=True, sources=request.sources)
        )
    batches, total, data = _images(request, subject)
    progress("write the graph", 0, None)
    description = describe(subject, request.target, pixels=request.pixels)
    graph = write_graph(subject.model, description, request.target, request.batch, tokens=request.tokens)
    progress("ask the runtimes", 0, None)
    runtimes = about_runtimes(graph.serialize(), request.target, graph.products)
    notes = _notes(graph, request, runtimes)
    others: list[Runtime] = []
    if request.target == "openvino" and (has_vnni() or not runtimes["openvino"].vnni):
        others = ["openvino"]
    exactness, end_to_end = _verify(graph, subject, request, others, batches, total, progress)
    verification = Verification(exactness=exactness.found, end_to_end=end_to_end.found, data=data)
    run = {"run": {"sha256": subject.about["sha256"]}} if subject.kind == "run" else {}
    about = {name: runtime.model_dump(mode="json") for name, runtime in runtimes.items()}
    set_metadata(graph.model, verification=verification, runtimes=about, **run)
    if output.suffix == ".xml":
        openvino.write_ir(graph.serialize(), output)
    else:
        with replaced_file(output) as fresh:
            fresh.write_bytes(graph.serialize())
    return ExportOnnxResult(
        output=str(output),
        model=subject.name,
        kind=subject.kind,
        gives=subject.gives,
        outputs=tuple(value.name for value in graph.model.graph.output),
        target=request.target if graph.products else None,
        opset=graph.model.opset_import[0].version,
        batch=request.batch,
        input="pixels" if request.pixels else "normalized",
        bytes=sum(path.stat().st_size for path in written),
        run=None if subject.run is None else subject.run.ledger,
        products=_about_products(graph),
        runtimes=runtimes,
        verification=verification,
        notes=(*subject.notes, *notes),
        seconds=round(time.perf_counter() - started, 2),
    )


def default_file(subject: Subject, target: Target) -> Path:
    """``RUN/model.onnx`` for a run, ``NAME/model.onnx`` for one on the hub, ``MODEL.onnx`` for a float model."""
    name = "model.onnx" if target == "onnxruntime" else f"model-{target}.onnx"
    return Path(f"{subject.name}.onnx") if subject.run is None else subject.run.place / name


def describe(subject: Subject, target: Target, *, pixels: bool) -> Description:
    """The description of this model for a file."""
    about = subject.about
    return Description(
        architecture=about["architecture"],
        num_classes=subject.labels.num_classes,
        model_args=about["model_args"],
        data_config=subject.data_config,
        label_names=None if subject.labels.names is None else list(subject.labels.names),
        recipe=about.get("recipe"),
        target=target if about.get("recipe") else None,
        input="pixels" if pixels else "normalized",
        source=about["source"],
    )


def _images(request: ExportRequest, subject: Subject) -> tuple[Iterable[tuple[Tensor, Tensor | None]], int | None, str]:
    """Batches to verify on, their number of images, and their name."""
    size = request.batch or 16
    if request.data is None:
        synthetic = synthetic_images(subject.data_config, request.images, size)
        return [(images, None) for images in synthetic], request.images, "synthetic"
    data = open_data(request.data, None if subject.embeds else subject.labels)
    loader = image_loader(data, subject.data_config, batch_size=size, workers=request.workers, limit=request.images)
    labelled = data.labelled
    batches = ((images, labels if labelled else None) for images, labels in loader)
    return batches, loader.image_count, data.name


def _verify(
    graph: OnnxGraph,
    subject: Subject,
    request: ExportRequest,
    others: Sequence[Runtime],
    batches: Iterable[tuple[Tensor, Tensor | None]],
    total: int | None,
    progress: Progress,
) -> tuple[Exactness, EndToEnd]:
    """Verify the graph product by product and end to end.

    Raises:
        ArtifactError: The graph does not compute the same as the model.
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
        graphs = {"graph": OnnxModel(path)}
        graphs |= {str(runtime): OnnxModel(path, runtime=runtime) for runtime in others}
        computing = {name: own.with_tokens if request.tokens else own for name, own in graphs.items()}
        images_of = chain([first], seen)
        end_to_end = compare_end_to_end(subject.model, computing, images_of, total, progress, gives=subject.gives)
    faults = [*exactness.faults(), *end_to_end.faults()]
    if faults:
        raise ArtifactError(
            "\n  ".join(["the graph does not compute the same as the model; nothing was written:", *faults])
        )
    return exactness, end_to_end


def _as_seen(images: Tensor, request: ExportRequest, subject: Subject) -> Tensor:
    """Images in the form that the graph takes; if it takes pixels, the nearest pixels."""
    if not request.pixels:
        return images
    return normalize(to_pixels(images, subject.data_config), subject.data_config)


def _about_products(graph: OnnxGraph) -> Products:
    """Numbers of products on integers and in float, and the reasons for float."""
    reasons = {name: product.obstacle for name, product in graph.products.items() if product.obstacle}
    return Products(
        integer=len(graph.products) - len(reasons),
        float=len(reasons),
        reasons=Counter(reasons.values()),
        left_float=tuple(ProductInFloat(product=name, reason=reason) for name, reason in reasons.items()),
    )


def _notes(graph: OnnxGraph, request: ExportRequest, runtimes: dict[str, AboutRuntime]) -> list[str]:
    """Notes about the file.

    Raises:
        ArtifactError: ``strict`` is set, and a runtime computes a layer in float.
    """
    notes, in_float, dense = [], [], {name for name, product in graph.products.items() if product.kind != "matmul"}
    for name, about in runtimes.items():
        own = [product for product in about.float if product in dense]
        in_float += own
        if own:
            notes.append(
                f"{name} computes {len(own)} of {len(dense)} layers in float, the first is {own[0]}; one "
                "step for each activation (`activations.granularity=tensor`, `activations.dynamic=false`) suits it best"
            )
    if request.target == "openvino" and runtimes["openvino"].vnni:
        saturates = "OpenVINO's kernels saturate on x86 CPUs without VNNI with weights of 8 bits; 7 bits are exact"
        checked = "" if has_vnni() else "; this is one, so it was verified in ONNX Runtime alone"
        notes.append(f"{saturates}{checked}")
    if in_float and request.strict:
        raise ArtifactError("\n  ".join(["--strict: not every layer is computed on integers:", *notes]))
    if not graph.products:
        notes.append("nothing in the model is quantized, so a float model was written")
    if request.data is None:
        notes.append("verified on synthetic images; --verify-data uses real ones")
    return notes
