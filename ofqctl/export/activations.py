"""Nodes that encode and decode activations, in the arithmetic of the quantizers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ofqctl.export.arithmetic import Array, LookupTable, Operand
from ofqctl.export.graph import Writer


@dataclass(frozen=True)
class ActivationCodes:
    """Codes of an activation in the graph, or levels of a table: ``value = step * (tensor + zero) + after``.

    Attributes:
        tensor: Name of the tensor.
        operand: The activation that is encoded.
        signed: Whether the tensor is int8, centred on 0; else it is uint8: codes minus the lowest code, or levels of a
            table.
        rank: Number of dimensions of the tensor.
    """

    tensor: str
    operand: Operand
    signed: bool
    rank: int

    @property
    def zero(self) -> NDArray[np.int64]:
        """The number to add to the tensor to get points; a scalar if all are equal."""
        return self.operand.zero - self.lowest

    @property
    def lowest(self) -> int:
        """What the tensor has for the lowest code."""
        return -(self.operand.range.count // 2) if self.signed else 0

    @property
    def dtype(self) -> type[np.integer]:
        """Type of the tensor."""
        return np.int8 if self.signed else np.uint8


def step_of(graph: Writer, operand: Operand) -> str:
    """The grid steps; one-dimensional if they vary along one dimension only."""
    return graph.floats(_flat(operand.step))


def offset_of(graph: Writer, operand: Operand) -> str:
    """The offsets, as stored."""
    return graph.floats(operand.offset)


def after_of(graph: Writer, operand: Operand) -> str:
    """The shift after rounding, as stored."""
    assert operand.after is not None
    return graph.floats(operand.after)


def steps_like(graph: Writer, operand: Operand) -> str:
    """The grid steps, in a shape that broadcasts to the tensor."""
    step = step_of(graph, operand)
    return graph.op("Reshape", step, graph.shape(operand.step.shape)) if operand.step.shape[-1:] == (1,) else step


def _flat(array: Array) -> Array:
    return array if axis_of(array.shape) is None else array.reshape(-1)


def axis_of(shape: tuple[int, ...]) -> int | None:
    """The only dimension, counted from the end, that is longer than 1; None if there is none or several."""
    long = [d - len(shape) for d, length in enumerate(shape) if length > 1]
    return long[0] if len(long) == 1 else None


def axis_attribute(array: Array, rank: int) -> dict[str, Any]:
    """The ``axis`` of QuantizeLinear and DequantizeLinear for a tensor of ``rank``, counted from the start."""
    axis = axis_of(array.shape)
    return {} if axis is None else {"axis": rank + axis}


def can_be_signed(operand: Operand) -> bool:
    """Whether the codes can be int8."""
    return operand.table is None


def write_codes(graph: Writer, x: str, codes: ActivationCodes, *, plain: bool) -> None:
    """Write ``clamp(round((x + before) / step) - offset)``.

    That is QuantizeLinear, which divides, rounds halves to even, adds the zero point and saturates. It takes steps and
    zero points that vary along one dimension; for those that vary along several, separate operators are written.

    Args:
        graph: Graph to write to.
        x: Name of the activation.
        codes: Description of the codes.
        plain: Whether QuantizeLinear must have one step, and nothing behind it, as compilers expect: steps are then
            divided by and values outside of the grid are clipped ahead of it.
    """
    operand, out = codes.operand, codes.tensor
    if operand.before is not None:
        x = graph.op("Add", x, graph.floats(operand.before))
    if operand.table is not None:
        _write_search(graph, graph.op("Div", x, steps_like(graph, operand)), operand.table.thresholds, out)
        return
    step: NDArray[Any] = operand.step
    zeros: NDArray[Any] = codes.zero
    varying = np.broadcast_shapes(step.shape, zeros.shape)
    axis = axis_of(varying)
    if varying and (axis is None or plain):
        x = graph.op("Div", x, steps_like(graph, operand))
        if zeros.ndim:
            x = graph.op("Sub", graph.op("Round", x), offset_of(graph, operand))
            zeros = np.asarray(operand.range.low - codes.lowest)
        step, varying = np.ones((), np.float32), ()
    attributes: dict[str, Any] = {"axis": codes.rank + axis} if varying and axis is not None else {}
    step, zeros = (np.broadcast_to(array, varying).reshape(-1 if varying else ()) for array in (step, zeros))
    scale, zero = graph.floats(step), graph.constant((-zeros).astype(codes.dtype))
    if operand.range.bits == 8:
        graph.op("QuantizeLinear", x, scale, zero, out=out, **attributes)
        return
    low, high = codes.lowest, codes.lowest + operand.range.count - 1
    if plain:
        ends = (graph.floats(step * (zeros + end)) for end in (low, high))
        graph.op("QuantizeLinear", graph.op("Clip", x, *ends), scale, zero, out=out)
        return
    rounded = graph.op("QuantizeLinear", x, scale, zero, **attributes)
    graph.op("Clip", rounded, *(graph.constant(codes.dtype(end)) for end in (low, high)), out=out)


def _write_search(graph: Writer, x: str, thresholds: Array, out: str) -> None:
    """Write the number of ascending ``thresholds`` below ``x``, uint8, by bisection with a few nodes for each bit."""
    bits = len(thresholds).bit_length()
    missing = (1 << bits) - 1 - len(thresholds)
    limits = graph.floats(np.append(thresholds, np.full(missing, np.inf, np.float32)))
    found = graph.constant(np.int32(0))
    for half in (1 << bit for bit in reversed(range(bits))):
        limit = graph.op("Gather", limits, graph.op("Add", found, graph.constant(np.int32(half - 1))))
        above = graph.op("Greater", x, limit)
        found = graph.op("Where", above, graph.op("Add", found, graph.constant(np.int32(half))), found)
    graph.op("Cast", found, to=TensorProto.UINT8, out=out)


def look_up(graph: Writer, tensor: str, table: LookupTable) -> str:
    """Look codes (uint8, minus the lowest code) up in ``table``."""
    index = graph.op("Cast", tensor, to=TensorProto.INT32)
    return graph.op("Gather", graph.constant(table.levels), index)


def write_values(graph: Writer, codes: ActivationCodes, *, out: str | None = None) -> str:
    """Write ``step * (code + offset + rest)`` plus the shift ``after``, float32."""
    operand, attributes = codes.operand, axis_attribute(codes.operand.step, codes.rank)
    shifted = operand.after is not None
    unshifted = None if shifted else out
    offset = codes.zero + operand.rest
    if (operand.step.ndim and not attributes) or codes.zero.ndim or operand.rest.any() or operand.table is not None:
        moved = graph.op("Cast", codes.tensor, to=TensorProto.FLOAT)
        if offset.any():
            moved = graph.op("Add", moved, graph.floats(offset))
        value = graph.op("Mul", moved, steps_like(graph, operand), out=unshifted)
    else:
        zero = graph.constant(np.full(_flat(operand.step).shape, -codes.zero, codes.dtype))
        value = graph.op("DequantizeLinear", codes.tensor, step_of(graph, operand), zero, out=unshifted, **attributes)
    return graph.op("Add", value, after_of(graph, operand), out=out) if shifted else value
