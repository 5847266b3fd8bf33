"""What a runtime makes of each product, read back from the graph that it executes."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from ofqctl.export import openvino
from ofqctl.export.multiply import saturates
from ofqctl.export.runtime import open_session
from ofqctl.export.sealing import read_model
from ofqctl.export.sites import Product
from ofqctl.results.export import AboutRuntime
from ofqctl.results.onnx import Target

FLOAT = "float operators"
_INTEGER = ("MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "ConvInteger", "QLinearConv", "QGemm")
_OLDEST = {20: "1.20", 21: "1.23", 25: "1.24"}  # versions of ONNX Runtime that load an opset


def optimized(model: bytes | Path) -> tuple[onnxruntime.InferenceSession, onnx.ModelProto]:
    """A session, and the graph that ONNX Runtime executes in it on this machine.

    Raises:
        ArtifactError: It cannot load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        session = open_session(model, None, path)
        return session, read_model(path)


def in_onnxruntime(run: onnx.ModelProto, names: set[str]) -> dict[str, str]:
    """The operator that computes each product in an optimized graph, by its name."""
    operators = {node.name: node.op_type for node in run.graph.node}
    return {name: operators.get(name, FLOAT) for name in names}


def needs_vnni(product: Product) -> bool:
    """Whether kernels of x86 CPUs without VNNI may saturate on a product with a weight, unless they are told not to."""
    if product.weight is None or product.obstacle:
        return False
    return saturates(product.operands[0].bits, product.weight.magnitude)


def about_runtimes(content: bytes, target: Target, products: Mapping[str, Product]) -> dict[str, AboutRuntime]:
    """How the runtimes that a file is for compute its products.

    Args:
        content: Content of the file.
        target: What it is for; OpenVINO is asked if it is installed, or if the file is for it.
        products: Products by name.

    Returns:
        What each makes of them, by name of the runtime.

    Raises:
        PackageError: The file is for OpenVINO, which is not installed.
        ArtifactError: A runtime cannot load the file.
    """
    names, model = set(products), onnx.load_from_string(content)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    vnni = any(needs_vnni(product) for product in products.values())
    summed = _summed(in_onnxruntime(optimized(content)[1], names), set(_INTEGER))
    found = {
        "onnxruntime": AboutRuntime(**summed, version=onnxruntime.__version__, oldest=_OLDEST[opset], vnni=vnni),
    }
    if target == "openvino" or (target == "portable" and openvino.is_installed()):
        kernels = openvino.kernels(content, names)
        summed = _summed(kernels, {kernel for kernel in kernels.values() if openvino.is_integer(kernel)})
        version = openvino.package().__version__.partition("-")[0]
        found["openvino"] = AboutRuntime(**summed, version=version, vnni=vnni)
    return found


def _summed(kernels: Mapping[str, str], integer: set[str]) -> dict[str, Any]:
    """The kernels of products on integers, counted, and the names of the other products."""
    return {
        "kernels": dict(Counter(kernel for kernel in kernels.values() if kernel in integer).most_common()),
        "float": sorted(name for name, kernel in kernels.items() if kernel not in integer),
    }
