"""``ofqctl.export``."""

from pathlib import Path

from torch import nn

from ofqctl.api.module import subject_of
from ofqctl.data import DataSpec
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.progress import Progress, silent
from ofqctl.results.export import ExportOnnxResult
from ofqctl.results.onnx import Target


def export(
    model: str | Path | nn.Module,
    path: str | Path,
    *,
    target: Target = "onnxruntime",
    batch: int | None = None,
    pixels: bool = False,
    input_size: tuple[int, int, int] | None = None,
    data: str | Path | None = None,
    images: int = 64,
    overwrite: bool = False,
    strict: bool = False,
    workers: int = 0,
    progress: Progress = silent,
) -> ExportOnnxResult:
    """Write a model as an ONNX file that is verified against torch; a model in memory is left as it is.

    Args:
        model: A run or a name as :func:`ofqctl.load` takes it, or a float or quantized model in memory.
        path: The file to write.
        target: What the file is for.
        batch: Number of images in one pass; None for any number.
        pixels: Whether the file takes uint8 pixels and normalizes them itself.
        input_size: Size of one image, (channels, H, W), of a float model in memory; None takes what timm says of it.
        data: Images to verify on; None uses synthetic images.
        images: Number of images for the comparison end to end.
        overwrite: Whether to replace an existing file.
        strict: Whether a layer that a runtime computes in float is an error.
        workers: Number of processes that decode images.
        progress: Called to report progress.

    Raises:
        OfqctlError: The model cannot be exported, or the file does not compute the same; nothing was written.
    """
    request = ExportRequest(
        model=subject_of(model, input_size),
        target=target,
        output=Path(path),
        batch=batch,
        pixels=pixels,
        data=None if data is None else DataSpec(str(data)),
        images=images,
        overwrite=overwrite,
        workers=workers,
        strict=strict,
    )
    return export_onnx(request, progress)
