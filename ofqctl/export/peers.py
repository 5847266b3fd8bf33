"""What people would use instead: the same float model, quantized by other programs."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ofqctl.export import openvino
from ofqctl.export.sealing import seal_again
from ofqctl.export.tracing import INPUT, quietly
from ofqctl.packages import missing

Build = Callable[[Path, Path, list[Tensor]], Path]


def build_peer(name: str, source: Path, folder: Path, images: list[Tensor]) -> tuple[Path, float]:
    """Quantize a float ONNX file, as that program's documentation says for transformers.

    Args:
        name: Name in ``PEERS``.
        source: The float file.
        folder: Folder for the result.
        images: Normalized calibration images, (B, 3, H, W) each; unused by dynamic quantization.

    Returns:
        The file, and the CPU seconds that it took.

    Raises:
        PackageError: The program is not installed.
    """
    start = time.process_time()
    with quietly():
        path = PEERS[name](source, folder / name, images)
    seconds = time.process_time() - start
    if path.suffix == ".onnx":
        seal_again(path)  # the program copied the digest of the float file
    return path, seconds


def ort_dynamic(source: Path, target: Path, images: list[Tensor]) -> Path:  # noqa: ARG001
    """ONNX Runtime's ``quantize_dynamic``: int8 rows of weights, activations of 8 bits by their range in each pass."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = target.with_suffix(".onnx")
    quantize_dynamic(
        source, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )
    return path


def ort_static(source: Path, target: Path, images: list[Tensor], method: str = "Percentile") -> Path:
    """ONNX Runtime's ``quantize_static``: int8 rows of weights, uint8 activations by ranges of the images.

    Args:
        source: The float file.
        target: Path of the result, without a suffix.
        images: Calibration images, (B, 3, H, W) each.
        method: Name in ONNX Runtime's ``CalibrationMethod``.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = target.with_suffix(".onnx")
    prepared = target.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        prepared,
        path,
        _Reader(images),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
        extra_options={"CalibStridedMinMax": 1},  # for any method: otherwise activations of all images are held at once
    )
    return path


class _Reader:
    """Calibration images, one at a time, as ONNX Runtime's quantizer reads them."""

    def __init__(self, images: list[Tensor]) -> None:
        self._images = _each(images)
        self.set_range(0, len(self))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The images that are read next."""
        self._left = iter(self._images[start_index:end_index])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input, or None after the last."""
        image = next(self._left, None)
        return None if image is None else {INPUT: image}


def nncf(source: Path, target: Path, images: list[Tensor], **settings: Any) -> Path:
    """NNCF's ``quantize`` for OpenVINO, with what it does for transformers (SmoothQuant among it).

    Args:
        source: The float file.
        target: Path of the result, without a suffix.
        images: Calibration images, (B, 3, H, W) each.
        **settings: Further arguments of ``nncf.quantize``.

    Raises:
        PackageError: It is not installed.
    """
    try:
        import nncf  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise missing("nncf", "--against nncf") from error
    each = _each(images)
    model = nncf.quantize(
        openvino.core().read_model(source),
        nncf.Dataset(each),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(each),
        **settings,
    )
    path = target.with_suffix(".xml")
    openvino.package().save_model(model, path, compress_to_fp16=False)
    return path


def _each(images: list[Tensor]) -> list[NDArray[np.float32]]:
    """Batches of one image."""
    return [image.numpy() for batch in images for image in torch.split(batch, 1)]


PEERS: dict[str, Build] = {"ort-dynamic": ort_dynamic, "ort-static": ort_static, "nncf": nncf}
