"""Inspect an ONNX file, and how ONNX Runtime optimizes it on this machine."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ofqctl.export.kernels import in_onnxruntime, optimized
from ofqctl.export.metadata import Description, read_description, read_entry
from ofqctl.export.sealing import check_seal, read_model


@dataclass
class OnnxContents:
    """The content of a file, and how it runs.

    Attributes:
        description: Its description, or None.
        opset: Opset of its standard operators.
        inputs: Name, type and shape of each input.
        outputs: Name, type and shape of each output.
        weights: How each quantized weight is stored, with its ``bytes``; empty for a foreign file.
        products: How each product is computed, with its ``kernel`` in the runtime.
        runtimes: How runtimes compute the products, as found at export; empty for a foreign file.
        verification: Results of the verification at export; empty for a foreign file.
        operators: Number of operators of each type in the file.
        run_operators: Number of operators of each type after the runtime's optimization.
        bytes: Sizes in the file: ``codes``, other ``constants``, the ``graph`` and the ``total``.
    """

    description: Description | None
    opset: int
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    weights: dict[str, dict[str, Any]]
    products: dict[str, dict[str, Any]]
    runtimes: dict[str, Any]
    verification: dict[str, Any]
    operators: dict[str, int]
    run_operators: dict[str, int]
    bytes: dict[str, int]


def look_into(path: Path) -> OnnxContents:
    """Read a file, and let the runtime optimize it.

    Raises:
        ArtifactError: The file is truncated, foreign, or of an opset that the runtime cannot load.
    """
    where = str(path)
    check_seal(path)
    model = read_model(path)
    properties = {prop.key: prop.value for prop in model.metadata_props}
    session, run = optimized(path)
    products = read_entry(properties, "products", where)
    kernels = in_onnxruntime(run, set(products))
    weights = read_entry(properties, "weights", where)
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    return OnnxContents(
        description=read_description(properties, where),
        opset=next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0),
        inputs=[_port(value) for value in session.get_inputs()],
        outputs=[_port(value) for value in session.get_outputs()],
        weights={name: entry | {"bytes": sizes.get(f"{name}.codes", 0)} for name, entry in weights.items()},
        products={name: entry | {"kernel": kernels[name]} for name, entry in products.items()},
        runtimes=read_entry(properties, "runtimes", where),
        verification=read_entry(properties, "verification", where),
        operators=_counted(model),
        run_operators=_counted(run),
        bytes=_bytes(model, path, {f"{name}.codes" for name in weights}),
    )


def _port(value: Any) -> dict[str, Any]:
    return {"name": value.name, "type": value.type, "shape": list(value.shape)}


def _counted(model: onnx.ModelProto) -> dict[str, int]:
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def _bytes(model: onnx.ModelProto, path: Path, codes: set[str]) -> dict[str, int]:
    total = path.stat().st_size
    stored = {tensor.name: tensor.ByteSize() for tensor in model.graph.initializer}
    of_codes = sum(size for name, size in stored.items() if name in codes)
    return {
        "codes": of_codes,
        "constants": sum(stored.values()) - of_codes,
        "graph": total - sum(stored.values()),
        "total": total,
    }
