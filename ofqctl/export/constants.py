"""Make the constants of a traced graph small: merge equal ones, store indices in few bytes and masks in one byte."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ofqctl.export.graph import Writer

_WORTH = 256  # elements; for fewer, an additional node costs more than it saves
_INTEGERS = (np.uint8, np.uint16, np.int32)


def compact(graph: Writer, initializers: list[onnx.TensorProto]) -> dict[str, str]:
    """Write the constants of a traced graph.

    Args:
        graph: Graph to write to.
        initializers: All constants of the traced graph.

    Returns:
        For each removed name, the tensor that replaces it.
    """
    replaced: dict[str, str] = {}
    for tensor in initializers:
        large = np.prod(tensor.dims) > _WORTH and tensor.data_type in (TensorProto.INT64, TensorProto.FLOAT)
        name = (_smaller(graph, tensor) if large else None) or graph.adopt(tensor)
        if name != tensor.name:
            replaced[tensor.name] = name
    return replaced


def _smaller(graph: Writer, tensor: onnx.TensorProto) -> str | None:
    """A tensor of the same values from fewer bytes, or None if there is no way."""
    values = numpy_helper.to_array(tensor)
    if values.dtype == np.int64:
        return _narrow(graph, values)
    ends = np.unique(values)
    if len(ends) != 2:
        return None
    chosen = graph.constant(values == ends[1])
    return graph.op("Where", chosen, graph.floats(ends[1]), graph.floats(ends[0]))


def _narrow(graph: Writer, values: NDArray[np.int64]) -> str | None:
    for kind in _INTEGERS:
        limits = np.iinfo(kind)
        if limits.min <= values.min() and values.max() <= limits.max:
            stored = graph.constant(values.astype(kind))
            return graph.op("Cast", stored, to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int64)))
    return None
