"""QuantizeLinear and DequantizeLinear around ordinary products (QDQ): the form that compilers expect.

Compilers expect one scale for a whole activation. An activation with several is divided by its grid steps before the
pair and multiplied by them after it; the scale of the pair is then 1.
"""

import numpy as np

from ofqctl.export.activations import ActivationCodes, offset_of, step_of, steps_like
from ofqctl.export.arithmetic import ExportedWeight, Operand
from ofqctl.export.codes import WeightWriter
from ofqctl.export.graph import Writer


def write_quantized(graph: Writer, x: str, codes: ActivationCodes) -> None:
    """Write the codes of an activation minus the lowest code, uint8.

    Values outside of the grid are clipped in float, so that there is nothing between QuantizeLinear and
    DequantizeLinear.
    """
    operand = codes.operand
    if operand.before is not None:
        x = graph.op("Add", x, graph.floats(operand.before))
    step, ends = np.float32(1.0), (operand.range.low, operand.range.high)
    if _has_one_step(operand):
        step, ends = np.float32(operand.step), (int(operand.zero), int(operand.zero) + operand.range.count - 1)
    else:
        x = graph.op("Div", x, steps_like(graph, operand))
        x = graph.op("Sub", graph.op("Round", x), offset_of(graph, operand)) if operand.offset.any() else x
    if operand.range.bits < 8:
        x = graph.op("Clip", x, *(graph.floats(step * end) for end in ends))
    graph.op("QuantizeLinear", x, *_scale(graph, operand), out=codes.tensor)


def write_dequantized(graph: Writer, codes: ActivationCodes, out: str) -> None:
    """Write the decoded value of codes."""
    operand = codes.operand
    rest = []
    if not _has_one_step(operand):
        rest += [("Add", offset_of(graph, operand))] if operand.offset.any() else []
        rest.append(("Mul", steps_like(graph, operand)))
    if operand.after is not None:
        rest.append(("Add", graph.floats(operand.after)))
    value = graph.op("DequantizeLinear", codes.tensor, *_scale(graph, operand), out=None if rest else out)
    for index, (kind, by) in enumerate(rest, 1):
        value = graph.op(kind, value, by, out=out if index == len(rest) else None)


def write_weight(graph: Writer, weights: WeightWriter, weight: ExportedWeight, out: str) -> None:
    """Write the value of a weight."""
    if weight.widened or weight.obstacle is not None:
        graph.op("Identity", weights.values(weight), out=out)
        return
    rows = weight.step.size
    asymmetric = weight.zero.ndim > 0
    integers = weights.levels(weight) if asymmetric else weights.centred(weight)
    flat = graph.op("Reshape", integers, graph.shape([rows, -1]))
    zero = (-weight.zero.reshape(-1)).astype(np.uint8) if asymmetric else np.zeros(rows, np.int8)
    value = graph.op("DequantizeLinear", flat, graph.vector(weights.units(weight)), graph.constant(zero), axis=0)
    graph.op("Reshape", value, graph.shape(weight.shape), out=out)


def _has_one_step(operand: Operand) -> bool:
    return operand.step.ndim == 0 and operand.offset.ndim == 0


def _scale(graph: Writer, operand: Operand) -> tuple[str, str]:
    """Scale and zero point of both operators."""
    if _has_one_step(operand):
        return step_of(graph, operand), graph.constant((-operand.zero).astype(np.uint8))
    return graph.floats(1.0), graph.constant(np.uint8(-operand.range.low))
