"""Decode the weights in an ONNX file as `docs/format.md` describes, from its metadata and its constants."""

from collections.abc import Iterator

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from ofqctl.export.arithmetic import Array
from ofqctl.export.metadata import read_entry
from ofqctl.packing import unpack


def decoded_weights(model: onnx.ModelProto) -> Iterator[tuple[str, Array]]:
    """The name and the value of each quantized weight, output channels first."""
    entries = read_entry({prop.key: prop.value for prop in model.metadata_props}, "weights", "the graph")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name, entry in entries.items():
        shape, packed = entry["shape"], bytearray(tensors[f"{name}.codes"].raw_data)
        stored = unpack(torch.frombuffer(packed, dtype=torch.uint8), entry["bits"], int(np.prod(shape)))
        own = {part: numpy_helper.to_array(tensors[f"{name}.{part}"]) for part in _PARTS if f"{name}.{part}" in tensors}
        points = _points(stored.numpy().reshape(shape), own, entry.get("multiplier", 1), entry.get("zero", 0))
        value: Array = points * own["step"]
        yield name, value.T if entry["transposed"] else value


_PARTS = ("step", "points", "rest")


def _points(stored: NDArray[np.uint8], own: dict[str, Array], multiplier: int, zero: list[int] | int) -> Array:
    if "points" in own:
        return own["points"][stored]
    zeros = np.reshape(np.asarray(zero, np.float32), own["step"].shape if isinstance(zero, list) else ())
    return multiplier * stored.astype(np.float32) + zeros + own.get("rest", np.zeros((), np.float32))
