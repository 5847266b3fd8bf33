"""What people would use instead: the same float model, quantized by other programs."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

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


def _ort_dynamic(source: Path, target: Path, images: list[Tensor]) -> Path:  # noqa: ARG001
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = target.with_suffix(".onnx")
    quantize_dynamic(
        source, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
    )
    return path


def _ort_static(source: Path, target: Path, images: list[Tensor]) -> Path:
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

    path = target.with_suffix(".onnx")
    quantize_static(
        source,
        path,
        _Reader(images),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Percentile,
        op_types_to_quantize=["MatMul", "Gemm", "Conv"],
    )
    return path


class _Reader:
    """Calibration images, one at a time, as ONNX Runtime's quantizer reads them."""

    def __init__(self, images: Iterable[Tensor]) -> None:
        self._images: Iterator[Tensor] = (image for batch in images for image in torch.split(batch, 1))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input, or None after the last."""
        image = next(self._images, None)
        return None if image is None else {INPUT: image.numpy()}


def _nncf(source: Path, target: Path, images: list[Tensor]) -> Path:
    try:
        import nncf  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise missing("nncf", "--against nncf") from error
    each = [image.numpy() for batch in images for image in torch.split(batch, 1)]
    model = nncf.quantize(
        openvino.core().read_model(source),
        nncf.Dataset(each),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(each),
    )
    path = target.with_suffix(".xml")
    openvino.package().save_model(model, path, compress_to_fp16=False)
    return path


PEERS: dict[str, Build] = {"ort-dynamic": _ort_dynamic, "ort-static": _ort_static, "nncf": _nncf}
