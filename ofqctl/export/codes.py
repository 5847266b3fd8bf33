"""Quantized weights in an ONNX file: codes at their real width, and nodes that decode them at load.

Codes are stored in an ONNX integer type if there is one of that width: 4 and 8 bits, and 2 bits for new runtimes. Any
other width is a stream of bytes, as in ``model.safetensors``, unpacked by nodes. These nodes depend only on
initializers, so that a runtime computes them once.
"""

import numpy as np
from onnx import TensorProto

from ofqctl.export.arithmetic import ExportedWeight
from ofqctl.export.graph import Writer

_INT8_MAX = 127
_GROUP = 8  # codes that fill whole bytes together at every bit-width
OPSET = 20  # opset of everything else
_OPSET_OF_BITS = {2: 25, 4: 21}


_TYPES = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}


class WeightWriter:
    """Writes each weight once, even if several products use it.

    Args:
        graph: Graph to write to.
        streamed: Bit-widths that are stored as streams of bytes although ONNX has a type for them.

    Attributes:
        written: The weights, in the shapes in which they were written.
    """

    def __init__(self, graph: Writer, streamed: tuple[int, ...] = ()) -> None:
        self._graph = graph
        self._types = {bits: kind for bits, kind in _TYPES.items() if bits not in streamed}
        self.written: dict[str, ExportedWeight] = {}

    @property
    def opset(self) -> int:
        """The lowest opset with types for all codes."""
        bits = {weight.range.bits for weight in self.written.values()} & self._types.keys()
        return max((_OPSET_OF_BITS.get(width, OPSET) for width in bits), default=OPSET)

    def values(self, weight: ExportedWeight) -> str:
        """The decoded weight, float32, identical to that of the quantizers."""
        graph = self._graph
        if not weight.even:
            return graph.op("Mul", self._points(weight), self.units(weight))
        levels = self._codes(weight, TensorProto.FLOAT)
        if weight.multiplier != 1:
            levels = graph.op("Mul", levels, graph.floats(weight.multiplier))
        moved = graph.op("Add", levels, graph.floats(weight.zero))
        if weight.rest.any():
            moved = graph.op("Add", moved, graph.floats(weight.rest, f"{weight.name}.rest"))
        return graph.op("Mul", moved, self.units(weight))

    def integers(self, weight: ExportedWeight) -> str:
        """The levels plus the weight's centre, int8; of a ``widened`` weight the codes. A new tensor at every call.

        Of a weight that ``overflows``, 127 stands for 128; see :meth:`excess`.
        """
        graph, centre, out = self._graph, weight.centre, self._graph.fresh()
        if not weight.even:
            points = graph.op("Sub", self._points(weight), graph.floats(weight.zero - centre))
            points = graph.op("Min", points, graph.floats(_INT8_MAX)) if weight.overflows else points
            return graph.op("Cast", points, to=TensorProto.INT8, out=out)
        codes = self._codes(weight, TensorProto.FLOAT)
        units = graph.floats(1.0 if weight.widened else 1.0 / weight.multiplier)
        return graph.op("QuantizeLinear", codes, units, graph.constant(np.int8(centre)), out=out)

    def excess(self, weight: ExportedWeight) -> str:
        """What the integers of a weight that ``overflows`` have beyond int8: 1 or 0, int8."""
        beyond = self._graph.op("Greater", self._points(weight), self._graph.floats(_INT8_MAX))
        return self._graph.op("Cast", beyond, to=TensorProto.INT8)

    def units(self, weight: ExportedWeight) -> str:
        """Value of the integer 1, in the shape of the grid steps."""
        return self._graph.floats(weight.unit, f"{weight.name}.step")

    def _points(self, weight: ExportedWeight) -> str:
        """Points that are not evenly spaced (integers if possible), looked up by the codes; float32."""
        points = self._graph.floats(weight.levels + weight.zero, f"{weight.name}.points")
        return self._graph.op("Gather", points, self._codes(weight, TensorProto.INT32))

    def _codes(self, weight: ExportedWeight, to: int) -> str:
        """The codes minus the lowest code, as type ``to``."""
        graph, name, kind = self._graph, f"{weight.name}.codes", self._types.get(weight.range.bits)
        self.written[weight.name] = weight
        if kind is None:
            return self._unpack(weight, to)
        return graph.op("Cast", graph.raw(name, kind, weight.shape, weight.packed), to=to)

    def _unpack(self, weight: ExportedWeight, to: int) -> str:
        """Unpack a stream: each of eight codes lies in two bytes, which form a number that is shifted and masked.

        These numbers are exact in float32, in which some compilers compute every product.
        """
        graph, bits, count, packed = self._graph, weight.range.bits, weight.codes.size, weight.packed
        stream = graph.raw(f"{weight.name}.codes", TensorProto.UINT8, [len(packed)], packed)
        groups = -(-count // _GROUP)
        missing = groups * bits - len(packed)
        if missing:
            stream = graph.op("Pad", stream, graph.shape([0, missing]))
        stream = graph.op("Cast", stream, to=TensorProto.FLOAT)
        places = np.zeros((bits + 1, _GROUP))
        for code in range(_GROUP):
            first = code * bits // 8
            places[first : first + 2, code] = 1, 256
        words = graph.op(
            "MatMul", graph.op("Reshape", stream, graph.shape([groups, bits])), graph.floats(places[:bits])
        )
        shifts = np.array([code * bits % 8 for code in range(_GROUP)], np.uint32)
        words = graph.op("Cast", words, to=TensorProto.UINT32)
        shifted = graph.op("BitShift", words, graph.constant(shifts), direction="RIGHT")
        codes = graph.op("BitwiseAnd", shifted, graph.constant(np.uint32(2**bits - 1)))
        codes = graph.op("Cast", codes, to=to)
        if groups * _GROUP > count:
            codes = graph.op("Slice", graph.vector(codes), graph.shape([0]), graph.shape([count]))
        return graph.op("Reshape", codes, graph.shape(weight.shape))
