"""Open and run ONNX files in ONNX Runtime or OpenVINO."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ofqctl.errors import ArtifactError, DataError
from ofqctl.export import openvino
from ofqctl.export.metadata import Description, read_description, read_entry
from ofqctl.export.pixels import to_pixels
from ofqctl.export.sealing import KEY, check_seal, read_model
from ofqctl.machine import has_vnni

Runtime = Literal["onnxruntime", "openvino"]
_LARGEST_INPUT = 2**30  # numbers in one batch of images


def open_session(
    model: bytes | Path, threads: int | None, optimized: Path | None = None, profile: Path | None = None
) -> onnxruntime.InferenceSession:
    """Open a session on the CPU.

    DequantizeLinear before MatMul is not fused, because the runtime would round the other factor to 8 bits. On CPUs
    without VNNI, weights of 8 bits are multiplied as uint8, because the kernels for int8 saturate there; where there is
    VNNI, the same option would change no result and make products take twice as long.

    Args:
        model: Path of the file, or its content.
        threads: Number of threads that one operator may use; None leaves it to the runtime.
        optimized: Path to write the optimized graph to, or None.
        profile: Path to write the times of operators to, or None; ``end_profiling`` of the session returns the file
            name.

    Raises:
        ArtifactError: The runtime cannot load it.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.add_session_config_entry("session.x64quantprecision", str(int(not has_vnni())))
    if threads is not None:
        options.intra_op_num_threads = threads
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    source = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base class
        where = "the graph" if isinstance(model, bytes) else str(model)
        raise ArtifactError(
            f"{where}: onnxruntime {onnxruntime.__version__} cannot load it: {_reason(error)}",
            hint="truncated and foreign files cannot be loaded; 4-bit weights need version 1.23, 2-bit weights 1.24",
        ) from error


def _reason(error: Exception) -> str:
    """The runtime's message on one line, without its function names."""
    text = " ".join(str(error).split())
    return re.sub(r"^(\[ONNXRuntimeError\] : \d+ : )?([A-Z_]+ : )?(\S+:\d+ .*?\) )?", "", text)[:300]


@dataclass(frozen=True)
class Port:
    """An input or output of a file.

    Attributes:
        name: Its name.
        shape: Its lengths; None for a dimension of any length.
        type: Its type, as ONNX Runtime names it.
    """

    name: str
    shape: tuple[int | None, ...]
    type: str


@dataclass(frozen=True)
class Engine:
    """A file that a runtime has loaded.

    Attributes:
        inputs: Its inputs.
        outputs: Its outputs.
        metadata: Entries of its metadata.
        run: Computes so many of its outputs, from the first, from its first input.
    """

    inputs: list[Port]
    outputs: list[Port]
    metadata: dict[str, str]
    run: Callable[[NDArray[Any], int], list[NDArray[np.float32]]]


def load(path: Path, threads: int | None = None, runtime: Runtime = "onnxruntime") -> Engine:
    """Load an ONNX file into a runtime.

    Raises:
        ArtifactError: The runtime cannot load it.
        PackageError: The runtime is not installed.
    """
    if path.suffix != ".xml":  # an IR repeats the digest of the ONNX file that it was made of, and has none of its own
        check_seal(path)
    if runtime == "openvino":
        return _in_openvino(path, threads)
    session = open_session(path, threads)
    inputs, outputs = (
        [Port(v.name, tuple(n if isinstance(n, int) else None for n in v.shape), v.type) for v in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    run = partial(_run_session, session, [output.name for output in outputs], inputs[0].name)
    return Engine(inputs, outputs, session.get_modelmeta().custom_metadata_map, run)


def _run_session(
    session: onnxruntime.InferenceSession, outputs: list[str], taken: str, images: NDArray[Any], count: int
) -> list[NDArray[np.float32]]:
    try:
        return [np.asarray(value, dtype=np.float32) for value in session.run(outputs[:count], {taken: images})]
    except Exception as error:  # the runtime's exceptions have no common base class
        raise ArtifactError(
            f"{outputs[0]}: onnxruntime {onnxruntime.__version__} cannot compute it: {_reason(error)}"
        ) from error


def _in_openvino(path: Path, threads: int | None) -> Engine:
    compiled = openvino.compiled(path, threads)
    inputs, outputs = (
        [
            Port(
                value.any_name,
                tuple(n.get_length() if n.is_static else None for n in value.partial_shape),
                {"u8": "tensor(uint8)", "f32": "tensor(float)"}.get(value.element_type.to_string(), "other"),
            )
            for value in values
        ]
        for values in (compiled.inputs, compiled.outputs)
    )
    described = read_model(path) if path.suffix == ".onnx" else onnx.ModelProto()
    metadata = {prop.key: prop.value for prop in described.metadata_props}

    def run(images: NDArray[Any], count: int) -> list[NDArray[np.float32]]:
        results = compiled([images])
        return [np.array(results[place]) for place in range(count)]

    return Engine(inputs, outputs, metadata, run)


class OnnxModel(nn.Module):
    """A model in an ONNX file that takes normalized images and returns logits or embeddings, like any other model.

    Args:
        path: Path of the file.
        threads: Number of threads that one operator may use; None leaves it to the runtime.
        runtime: What runs it.

    Attributes:
        description: Description in the file, or None if this program did not write it.
        size: Size of its input, (3, H, W); 0 for a dimension that may have any length.
        pixels: Whether it takes uint8 pixels.
        batch: Fixed number of images in a batch, or None.
        outputs: Names of its outputs.
        width: Length of its first output, the number of classes or features, or 0 if unknown.
        has_digest: Whether the file holds its own digest.
        run_sha256: SHA-256 of the weights file of the run that it was exported from, or None.
        data_config: Preprocessing of its images; if the file includes the normalization, it is undone first.

    Raises:
        ArtifactError: It cannot be loaded, or does not give one vector for each image.
    """

    def __init__(self, path: Path, threads: int | None = None, runtime: Runtime = "onnxruntime") -> None:
        super().__init__()
        self._path, self._engine = path, load(path, threads, runtime)
        self.description: Description | None = read_description(self._engine.metadata, str(path))
        inputs, outputs = self._engine.inputs, self._engine.outputs
        kinds = ("tensor(float)", "tensor(uint8)")
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in kinds or len(outputs[0].shape) != 2:
            seen = ", ".join(f"{value.name} {value.shape} {value.type}" for value in (*inputs, *outputs))
            raise ArtifactError(
                f"{path}: does not give a vector for each image (B, 3, H, W): its inputs and outputs are {seen}"
            )
        if prod(length or 1 for length in inputs[0].shape) > _LARGEST_INPUT:
            raise ArtifactError(f"{path}: takes {inputs[0].shape} values at once; allowed are {_LARGEST_INPUT}")
        self.batch, *size = inputs[0].shape
        self.size = tuple(length or 0 for length in size)
        self.pixels = inputs[0].type == "tensor(uint8)"
        self.outputs = [output.name for output in outputs]
        self.width = outputs[0].shape[1] or 0
        self.has_digest = KEY in self._engine.metadata
        self.run_sha256: str | None = read_entry(self._engine.metadata, "run", str(path)).get("sha256")
        self.data_config = {} if self.description is None else self.description.data_config
        said = 0 if self.description is None else self.description.num_classes
        if said and self.width not in (0, said):
            raise ArtifactError(f"{path}: has {self.width} outputs, but describes {said} classes")

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images (B, 3, H, W) -> its first output, (B, classes or features).

        Raises:
            DataError: The images have another size.
        """
        return self._computed(images, 1)[0]

    def with_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized images (B, 3, H, W) -> embeddings (B, D) and patch tokens (B, N, C).

        Raises:
            ArtifactError: The file has no patch tokens.
            DataError: The images have another size.
        """
        if self.outputs != ["embedding", "tokens"]:
            raise ArtifactError(
                f"{self._path}: has no patch tokens among its outputs ({', '.join(self.outputs)})",
                hint="`ofqctl export RUN --onnx --tokens` writes them",
            )
        embedding, tokens = self._computed(images, 2)
        return embedding, tokens

    def _computed(self, images: Tensor, count: int) -> list[Tensor]:
        """So many outputs, from the first, for images of any number."""
        if any(own not in (0, given) for own, given in zip(self.size, images.shape[1:], strict=True)):
            raise DataError(f"images {tuple(images.shape[1:])}: the model takes {self.size}")
        if self.pixels:
            images = to_pixels(images, self.data_config)
        parts = [self._filled_up(part.numpy(), count) for part in torch.split(images, self.batch or len(images))]
        return [torch.from_numpy(np.concatenate(output)) for output in zip(*parts, strict=True)]

    def _filled_up(self, images: NDArray[Any], count: int) -> list[NDArray[np.float32]]:
        """Outputs for a batch that may be too small for the file."""
        given = len(images)
        if self.batch is not None and given < self.batch:
            images = np.concatenate([images, np.repeat(images[-1:], self.batch - given, axis=0)])
        return [output[:given] for output in self._engine.run(images, count)]

    def infer(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """The first output for a batch in exactly the form that the file takes."""
        return self._engine.run(images, 1)[0]
