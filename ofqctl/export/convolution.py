"""Convolutions computed on integer codes."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofqctl.export.activations import ActivationCodes, step_of, write_values
from ofqctl.export.arithmetic import Array, ExportedWeight, Operand
from ofqctl.export.multiply import Left, Multiply, common_zero
from ofqctl.export.sites import Product, Window


class IntegerConvolutions:
    """Writes convolutions; those with patches as matrix products, which are several times faster.

    If each of the few input channels has its own grid step, channels are multiplied separately and the products are
    added in float. Differences of zero points from their mean become part of the shift after rounding.

    Args:
        multiply: Writes the operator of each product.
    """

    def __init__(self, multiply: Multiply) -> None:
        self._graph, self._weights, self._multiply = multiply.graph, multiply.weights, multiply

    def write(self, product: Product, codes: ActivationCodes, out: str) -> None:
        """(batch, in, height, width) -> (batch, out, height, width)."""
        weight, window, operand = product.weight, product.window, codes.operand
        assert weight is not None and window is not None
        zero, beyond = common_zero(codes)
        shift = _shift(operand, beyond)
        if _cuts_patches(weight, window):
            self._patches(product, weight, codes, zero, shift, out)
        else:
            self._slide(product, weight, codes, zero, shift, out)

    def _patches(
        self,
        product: Product,
        weight: ExportedWeight,
        codes: ActivationCodes,
        zero: int,
        shift: Array | None,
        out: str,
    ) -> None:
        """Write one matrix product, (patches, in * kernel) times (in * kernel, out), or one for each channel."""
        graph, window, operand = self._graph, product.window, codes.operand
        assert window is not None
        channels, (height, width) = window.size[0], window.moves(weight.shape[2:])
        right, each = self._multiply.weight(product.name, weight.as_matrix()), operand.step.ndim > 0
        rows = self._cut(codes.tensor, weight, window, each=each)
        term = None if product.bias is None else graph.floats(product.bias)
        if shift is not None:
            mapped = self._map_shift(shift, weight, window)
            term = mapped if term is None else graph.op("Add", mapped, term)
        if each:
            one, units = graph.floats(1.0), graph.op("Mul", right.step, graph.floats(operand.step))  # (in, 1, out)
            apart = graph.op("Reshape", right.tensor, graph.shape([channels, -1, weight.shape[0]]))
            products = self._multiply(
                product.name, Left(rows, zero, one, 4), replace(right, tensor=apart, step=one, columns=1)
            )
            y = graph.op("ReduceSum", graph.op("Mul", products, units), graph.shape([1]), keepdims=0)
        else:
            left = Left(rows, zero, step_of(graph, operand), 3)
            y = self._multiply(product.name, left, right, term if shift is None else None)
        if term is not None and (each or shift is not None):
            y = graph.op("Add", y, term)
        turned = graph.op("Transpose", y, perm=[0, 2, 1])
        graph.op("Reshape", turned, graph.shape([-1, weight.shape[0], height, width]), out=out)

    def _map_shift(self, shift: Array, weight: ExportedWeight, window: Window) -> str:
        """What a shift adds to each patch, (1, patches, out); a constant, or computed at load if that is smaller."""
        graph, matrix = self._graph, weight.as_matrix()
        (rows, columns), (height, width) = window.moves(weight.shape[2:]), weight.shape[2:]
        whole = np.broadcast_to(shift, (1, *window.size))
        patches = 1 if shift.ndim < 3 or shift.shape[-2:] == (1, 1) else rows * columns  # number of different ones
        if patches == 1 or patches * weight.shape[0] <= shift.size:
            apart = whole.reshape(window.size[0], rows, height, columns, width).transpose(1, 3, 0, 2, 4)
            return graph.floats(apart.reshape(1, rows * columns, -1)[:, :patches] @ matrix.values())
        cut = self._cut(graph.op("Expand", graph.floats(shift), graph.shape(whole.shape)), weight, window, each=False)
        return graph.op("MatMul", cut, self._weights.values(matrix))

    def _cut(self, image: str, weight: ExportedWeight, window: Window, *, each: bool) -> str:
        """(batch, in, H, W) -> (batch, patches, in * kernel), or (batch, in, patches, kernel) for separate channels."""
        graph, channels = self._graph, window.size[0]
        (rows, columns), (height, width) = window.moves(weight.shape[2:]), weight.shape[2:]
        apart = graph.op("Reshape", image, graph.shape([-1, channels, rows, height, columns, width]))
        if each:
            turned = graph.op("Transpose", apart, perm=[0, 1, 2, 4, 3, 5])
            return graph.op("Reshape", turned, graph.shape([-1, channels, rows * columns, height * width]))
        turned = graph.op("Transpose", apart, perm=[0, 2, 4, 1, 3, 5])
        return graph.op("Reshape", turned, graph.shape([-1, rows * columns, channels * height * width]))

    def _slide(
        self,
        product: Product,
        weight: ExportedWeight,
        codes: ActivationCodes,
        zero: int,
        shift: Array | None,
        out: str,
    ) -> None:
        """Write ConvInteger; if channels have grid steps of their own, with a group of outputs for each channel."""
        graph, window, operand = self._graph, product.window, codes.operand
        assert window is not None
        moves: dict[str, Any] = {"strides": window.strides, "pads": window.pads, "dilations": window.dilations}
        if not self._multiply.fused:
            values = write_values(graph, codes), self._weights.values(weight)
            bias = [] if product.bias is None else [graph.floats(product.bias)]
            graph.op("Conv", *values, *bias, out=out, name=product.name, group=window.groups, **moves)
            return
        outputs, channels = weight.shape[0], window.size[0]
        kernel = self._multiply.weight(product.name, weight)
        each, tensor = window.groups == 1 and operand.step.ndim > 0, kernel.tensor
        if each:
            turned = graph.op("Transpose", tensor, perm=[1, 0, 2, 3])
            tensor = graph.op("Reshape", turned, graph.shape([channels * outputs, 1, *weight.shape[2:]]))
        summed = graph.op(
            "ConvInteger",
            codes.tensor,
            tensor,
            graph.constant(np.uint8(-zero)),
            graph.constant(kernel.zero_point),
            name=product.name,
            group=channels if each else window.groups,
            **moves,
        )
        steps = operand.step.reshape(-1, 1) if each else operand.step.reshape(-1).repeat(outputs // operand.step.size)
        units = graph.op("Mul", graph.vector(self._weights.units(weight)), graph.floats(steps))
        scaled = graph.op("DequantizeLinear", summed, graph.vector(units), axis=1)
        if each:
            lengths = [-1, channels, outputs, *window.moves(weight.shape[2:])]
            scaled = graph.op(
                "ReduceSum", graph.op("Reshape", scaled, graph.shape(lengths)), graph.shape([1]), keepdims=0
            )
        constant = None if product.bias is None else graph.floats(product.bias.reshape(-1, 1, 1))
        if shift is not None:
            whole = graph.op("Expand", graph.floats(shift), graph.shape([1, *window.size]))
            mapped = graph.op("Conv", whole, self._weights.values(weight), group=window.groups, **moves)
            constant = mapped if constant is None else graph.op("Add", mapped, constant)
        inputs = (scaled,) if constant is None else (scaled, constant)
        graph.op("Identity" if constant is None else "Add", *inputs, out=out)


def _shift(operand: Operand, beyond: NDArray[np.floating]) -> Array | None:
    """What is added to the values of the codes with one common zero point."""
    if not beyond.any():
        return operand.after
    shift = (beyond * operand.step).astype(np.float32)
    return shift if operand.after is None else shift + operand.after


def _cuts_patches(weight: ExportedWeight, window: Window) -> bool:
    """Whether each input pixel is read exactly once, by one patch."""
    kernel = weight.shape[2:]
    whole = all(size % taps == 0 for size, taps in zip(window.size[1:], kernel, strict=True))
    plain = window.groups == 1 and not any(window.pads) and window.dilations == (1, 1)
    return plain and whole and window.strides == kernel and not weight.zero.ndim
