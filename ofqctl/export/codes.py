"""Quantized weights in an ONNX file: codes at their real width, and nodes that decode them at load.

Codes are stored in an ONNX integer type if there is one of that width: 4 and 8 bits, and 2 bits for new runtimes. Any
other width is a stream of bytes, as in ``model.safetensors``, unpacked by nodes. These nodes depend only on
initializers, so that a runtime computes them once.
"""

import numpy as np
from onnx import TensorProto, helper

from ofqctl.export.arithmetic import ExportedWeight
from ofqctl.export.graph import Writer

_GROUP = 8  # codes that fill whole bytes together at every bit-width
OPSET = 20  # opset of everything else
_OPSET_OF_BITS = {2: 25, 4: 21}


_TYPES = {2: TensorProto.UINT2, 4: TensorProto.UINT4, 8: TensorProto.UINT8}
_NEW = (TensorProto.UINT2,)  # runtimes that know these also add 8-bit integers


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
        codes = self._codes(weight, TensorProto.FLOAT, weight.multiplier)
        moved = graph.op("Add", codes, graph.floats(weight.zero))
        if weight.rest.any():
            moved = graph.op("Add", moved, graph.floats(weight.rest, f"{weight.name}.rest"))
        return graph.op("Mul", moved, self.units(weight))

    def codes(self, weight: ExportedWeight) -> str:
        """The codes minus the lowest code, uint8."""
        return self._codes(weight, TensorProto.UINT8)

    def levels(self, weight: ExportedWeight, *, signed: bool = False) -> str:
        """The integers of the codes, without the zero; uint8 or int8."""
        graph, kind = self._graph, TensorProto.INT8 if signed else TensorProto.UINT8
        if weight.even:
            return self._codes(weight, kind, weight.multiplier)
        return graph.op("Cast", graph.op("Sub", self._points(weight), graph.floats(weight.zero)), to=kind)

    def centred(self, weight: ExportedWeight) -> str:
        """The integers of the codes, int8."""
        graph = self._graph
        if not weight.even:
            return graph.op("Cast", self._points(weight), to=TensorProto.INT8)
        codes, zero = self._codes(weight, TensorProto.FLOAT), graph.constant(np.asarray(weight.zero, np.int8))
        return graph.op("QuantizeLinear", codes, graph.floats(1.0 / weight.multiplier), zero)

    def units(self, weight: ExportedWeight) -> str:
        """Value of the integer 1, in the shape of the grid steps."""
        return self._graph.floats(weight.unit, f"{weight.name}.step")

    def _points(self, weight: ExportedWeight) -> str:
        """Points that are not evenly spaced (integers if possible), looked up by the codes; float32."""
        points = self._graph.floats(weight.levels + weight.zero, f"{weight.name}.points")
        return self._graph.op("Gather", points, self._codes(weight, TensorProto.INT32))

    def _codes(self, weight: ExportedWeight, to: int, multiplier: int = 1) -> str:
        """The codes minus the lowest code, times ``multiplier`` (1 or 2), as type ``to``."""
        graph, name, kind = self._graph, f"{weight.name}.codes", self._types.get(weight.range.bits)
        self.written[weight.name] = weight
        if kind is None:
            return self._unpack(weight, to, multiplier)
        stored = graph.raw(name, kind, weight.shape, weight.packed)
        if multiplier == 1:
            return stored if kind == to else graph.op("Cast", stored, to=to)
        between = to if kind in _NEW else TensorProto.FLOAT
        codes = graph.op("Cast", stored, to=between)
        doubled = graph.op("Add", codes, codes)
        return doubled if between == to else graph.op("Cast", doubled, to=to)

    def _unpack(self, weight: ExportedWeight, to: int, multiplier: int) -> str:
        """Unpack a stream: the bytes of eight codes form an integer, which is shifted for each code and masked."""
        graph, bits, count, packed = self._graph, weight.range.bits, weight.codes.size, weight.packed
        kind = np.uint32 if bits * _GROUP < np.iinfo(np.uint32).bits else np.uint64
        stream = graph.raw(f"{weight.name}.codes", TensorProto.UINT8, [len(packed)], packed)
        groups = -(-count // _GROUP)
        missing = groups * bits - len(packed)
        if missing:
            stream = graph.op("Pad", stream, graph.shape([0, missing]))
        stream = graph.op("Cast", stream, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
        places = np.array([[multiplier << 8 * place] for place in range(bits)], kind)
        words = graph.op("MatMul", graph.op("Reshape", stream, graph.shape([groups, bits])), graph.constant(places))
        shifts = np.array([bits * place for place in range(_GROUP)], kind)
        shifted = graph.op("BitShift", words, graph.constant(shifts), direction="RIGHT")
        codes = graph.op("BitwiseAnd", shifted, graph.constant(kind(multiplier * (2**bits - 1))))
        codes = graph.op("Cast", codes, to=to)
        if groups * _GROUP > count:
            codes = graph.op("Slice", graph.vector(codes), graph.shape([0]), graph.shape([count]))
        return graph.op("Reshape", codes, graph.shape(weight.shape))
