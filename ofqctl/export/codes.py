"""Quantized weights in an ONNX file: codes at their real width, and nodes that decode them at load.

A width that ONNX has an integer for is stored as that: 4 and 8 bits and, where the runtime is one that knows it, 2.
Any other is one stream of bytes, as in ``model.safetensors``, unpacked by nodes. All nodes depend on initializers
alone, so that a runtime computes them once.
"""

import numpy as np
from onnx import TensorProto

from ofqctl.export.graph import Writer
from ofqctl.export.sites import Weight

_GROUP = 8  # codes that together fill a whole number of bytes at every width
OPSET = 20  # of everything else
_OPSET_OF_BITS = {2: 25, 4: 21}


_TYPES = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}


class WeightWriter:
    """Writes each weight once, however many products use it.

    Args:
        graph: Where to write.
        streamed: Widths that are stored as streams of bytes although ONNX has a type for them.

    Attributes:
        written: The weights, in the shapes they were written in.
    """

    def __init__(self, graph: Writer, streamed: tuple[int, ...] = ()) -> None:
        self._graph = graph
        self._types = {bits: kind for bits, kind in _TYPES.items() if bits not in streamed}
        self.written: dict[str, Weight] = {}

    @property
    def opset(self) -> int:
        """The least that has a type for all codes."""
        bits = {weight.grid.bits for weight in self.written.values()} & self._types.keys()
        return max((_OPSET_OF_BITS.get(width, OPSET) for width in bits), default=OPSET)

    def values(self, weight: Weight) -> str:
        """The decoded weight, float32, to the bit what the quantizers make of it."""
        graph = self._graph
        codes = self._cast(weight, TensorProto.FLOAT)
        codes = codes if weight.multiplier == 1 else graph.op("Mul", codes, graph.floats(weight.multiplier))
        return graph.op("Mul", graph.op("Add", codes, graph.floats(weight.zero)), self.units(weight))

    def integers(self, weight: Weight, *, signed: bool) -> str:
        """``multiplier * (code + offset)``: int8, or uint8 with 128 added."""
        graph = self._graph
        zero = np.asarray(weight.zero, np.int8) if signed else np.asarray(weight.zero + 128, np.uint8)
        scale = graph.floats(1.0 / weight.multiplier)
        return graph.op("QuantizeLinear", self._cast(weight, TensorProto.FLOAT), scale, graph.constant(zero))

    def unsigned(self, weight: Weight) -> str:
        """The codes counted from the grid's lowest, uint8."""
        return self._cast(weight, TensorProto.UINT8)

    def units(self, weight: Weight) -> str:
        """What 1 of the integers is worth, in the shape of the steps."""
        return self._graph.floats(weight.unit, f"{weight.name}.step")

    def _cast(self, weight: Weight, to: int) -> str:
        """The codes counted from the grid's lowest, as numbers of type ``to``."""
        graph, name, bits = self._graph, f"{weight.name}.codes", weight.grid.bits
        self.written[weight.name] = weight
        kind = self._types.get(bits)
        if kind is not None:
            stored = graph.raw(name, kind, weight.shape, weight.packed)
            return stored if kind == to else graph.op("Cast", stored, to=to)
        codes = self._unpack(weight)
        return codes if to == TensorProto.UINT8 else graph.op("Cast", codes, to=to)

    def _unpack(self, weight: Weight) -> str:
        """Codes of 3, 5, 6 or 7 bits from their stream: each lies in one byte or two, lowest bits first."""
        graph, bits, count = self._graph, weight.grid.bits, weight.codes.size
        packed = weight.packed
        stream = graph.raw(f"{weight.name}.codes", TensorProto.UINT8, [len(packed)], packed)
        groups = -(-count // _GROUP)
        missing = groups * bits - len(packed)
        if missing:
            stream = graph.op("Pad", stream, graph.shape([0, missing]))
        rows = graph.op("Reshape", graph.op("Cast", stream, to=TensorProto.UINT32), graph.shape([groups, bits]))
        first = [i * bits // 8 for i in range(_GROUP)]
        low = graph.op("Gather", rows, graph.shape(first), axis=1)
        high = graph.op("Gather", rows, graph.shape([min(j + 1, bits - 1) for j in first]), axis=1)
        upper = graph.op("BitShift", high, graph.constant(np.full(1, 8, np.uint32)), direction="LEFT")
        word = graph.op("BitwiseOr", low, upper)
        shifts = np.array([i * bits % 8 for i in range(_GROUP)], np.uint32)
        shifted = graph.op("BitShift", word, graph.constant(shifts), direction="RIGHT")
        codes = graph.op("BitwiseAnd", shifted, graph.constant(np.uint32(2**bits - 1)))
        flat = graph.op("Reshape", graph.op("Cast", codes, to=TensorProto.UINT8), graph.shape([-1]))
        if groups * _GROUP > count:
            flat = graph.op("Slice", flat, graph.shape([0]), graph.shape([count]))
        return graph.op("Reshape", flat, graph.shape(weight.shape))
