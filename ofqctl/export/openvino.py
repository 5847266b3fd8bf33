"""Compile ONNX files with OpenVINO, an optional package, and read back what it runs."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from ofqctl.errors import ArtifactError
from ofqctl.files import replaced_file
from ofqctl.packages import missing

_INTEGERS = ("i8", "u8")


def is_installed() -> bool:
    """Whether the package is there."""
    return importlib.util.find_spec("openvino") is not None


def package() -> Any:
    """The package.

    Raises:
        PackageError: It is not installed.
    """
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError as error:
        raise missing("openvino") from error
    return openvino


@cache
def core() -> Any:
    """The one core of the process, which lives as long as the process.

    A core gives the thread that made it a signal stack of its own, and the former one back when it ends. Where two
    end in the order in which they began, the thread keeps a stack that is gone, and the next signal, such as that of
    a child that ended, kills the process.

    Raises:
        PackageError: OpenVINO is not installed.
    """
    return package().Core()


def compiled(model: bytes | Path, threads: int | None = None) -> Any:
    """Compile a file for the CPU, in float32 where it is float.

    Args:
        model: Path of an ONNX file or of an IR (``.xml``), or the content of an ONNX file.
        threads: Number of threads; None leaves it to the runtime.

    Raises:
        PackageError: OpenVINO is not installed.
        ArtifactError: It cannot load the file.
    """
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}  # otherwise some CPUs compute floats in bfloat16
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        return core().compile_model(core().read_model(model), "CPU", config)
    except RuntimeError as error:
        where = "the graph" if isinstance(model, bytes) else str(model)
        reason = " ".join(str(error).split())[-300:]
        raise ArtifactError(f"{where}: openvino {package().__version__} cannot load it: {reason}") from error


def write_ir(content: bytes, path: Path) -> None:
    """Write an ONNX file as OpenVINO's IR, ``path`` (``.xml``) and the weights beside it (``.bin``).

    Raises:
        PackageError: OpenVINO is not installed.
    """
    with replaced_file(path) as fresh:
        package().save_model(core().read_model(content), fresh, compress_to_fp16=False)


def kernels(content: bytes, names: set[str]) -> dict[str, str]:
    """The kernels that products get, from the graph that the runtime executes.

    Args:
        content: Content of an ONNX file.
        names: Names of the products.

    Returns:
        By name of a product, the type of the layer with its precision; "" for a product in another layer.
    """
    found = dict.fromkeys(names, "")
    for layer in compiled(content).get_runtime_model().get_ordered_ops():
        about = layer.get_rt_info()
        said = {key: str(about[key].astype(str)) for key in _ABOUT if key in about}
        own = [part for part in said.get("originalLayersNames", "").split(",") if part in found]
        if own and said.get("layerType") not in _HELPERS:
            found |= dict.fromkeys(own, f"{said['layerType']} {said['runtimePrecision']}")
    return found


_ABOUT = ("layerType", "runtimePrecision", "originalLayersNames")
_HELPERS = ("Const", "Reorder", "Reshape", "Transpose", "Convert", "FakeQuantize")


def is_integer(kernel: str) -> bool:
    """Whether this is a kernel on integers."""
    return kernel.endswith(_INTEGERS)
