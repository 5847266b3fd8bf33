"""Products computed on integer codes: exact sums of integers, then grid steps and shifts in float.

With ``value = step * (code + zero) + after`` for both factors, a product is

    row step * column step * sum((code + zero) * (code + zero)) + terms of the shifts,

where the terms of the shifts have rank one, or are constant if one factor is a weight.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from ofqctl.export.activations import (
    ActivationCodes,
    after_of,
    axis_attribute,
    axis_of,
    step_of,
    steps_like,
    write_values,
    zero_of,
)
from ofqctl.export.arithmetic import Array, ExportedWeight, Operand
from ofqctl.export.codes import WeightWriter
from ofqctl.export.graph import Writer
from ofqctl.export.sites import Product

MICROSOFT = "com.microsoft"  # domain of the operators that ONNX Runtime adds to the standard's
_INT8_MAX, _INT16_MAX = 127, 32767


@dataclass(frozen=True)
class Right:
    """The right factor of a product of integers.

    Attributes:
        tensor: Name of the tensor, (..., K, N), or of the kernel of a convolution; int8 or uint8.
        zero: Number to add to it: a scalar or, for a weight, one for each column, (N,).
        signed: Whether it is int8.
        zeros: Name of a further tensor to add to it, one number for each column, int32, (..., 1, N); or None.
    """

    tensor: str
    zero: NDArray[np.int64]
    signed: bool
    zeros: str | None = None


def saturates(left_bits: int, largest: int) -> bool:
    """Whether kernels of CPUs without VNNI, which add two products in 16 bits, may saturate.

    Args:
        left_bits: Bits of the unsigned left factor.
        largest: Largest magnitude of the signed right factor.
    """
    return 2 * ((1 << left_bits) - 1) * largest > _INT16_MAX


class IntegerProducts:
    """Writes products on integers.

    Args:
        graph: Graph to write to.
        weights: Writes the weights.
        fused: Whether to use ONNX Runtime's own operator for a product with its grid steps and bias, where it fits.
    """

    def __init__(self, graph: Writer, weights: WeightWriter, *, fused: bool = False) -> None:
        self._graph, self._weights, self._fused = graph, weights, fused

    def linear(self, product: Product, codes: ActivationCodes, out: str) -> None:
        """(..., in) -> (..., out)."""
        graph, operand = self._graph, codes.operand
        assert product.weight is not None
        weight = product.weight.as_matrix()
        constant = np.zeros(weight.shape[1]) if product.bias is None else product.bias.astype(np.float64)
        if operand.after is not None:
            shift = np.broadcast_to(operand.after.astype(np.float64).reshape(-1), weight.shape[:1])
            constant = constant + shift @ weight.values()
        by_column, bias = weight.step.size > 1, graph.floats(constant) if constant.any() else None
        right, units = self.integers(weight, operand.bits), self._weights.units(weight)
        if self._fused and not weight.widened and codes.zero.ndim == 0:
            self._scaled(product.name, codes, right, units, bias, out)
            return
        summed = self._multiply(product.name, codes, right, weight.shape[0])
        if (
            weight.widened
        ):  # 2 * code + 1 does not fit into 8 bits: add twice the sum over codes and that over the input
            twice = graph.op("Mul", summed, graph.constant(np.int32(2)))
            summed = graph.op("Add", twice, self._sum_of_rows(codes, weight.shape[0]))
        scaled = self._scale(summed, codes, units, by_column, out=None if bias else out)
        if bias is not None:
            graph.op("Add", scaled, bias, out=out)

    def integers(self, weight: ExportedWeight, left_bits: int) -> Right:
        """The integers of a weight, in a type that no kernel saturates on; if it is ``widened``, its codes."""
        weights, counted = self._weights, int(weight.levels[-1])
        if weight.widened:
            return Right(weights.codes(weight), np.asarray(weight.range.low), signed=False)
        if counted <= _INT8_MAX and weight.zero.min() > -_INT8_MAX and not saturates(left_bits, counted):
            return Right(weights.levels(weight, signed=True), weight.zero, signed=True)
        fits = weight.smallest >= -_INT8_MAX - 1 and weight.largest <= _INT8_MAX
        if fits and not weight.zero.ndim and not saturates(left_bits, weight.magnitude):
            return Right(weights.centred(weight), np.asarray(0), signed=True)
        return Right(weights.levels(weight), weight.zero, signed=False)

    def matmul(self, product: Product, left: ActivationCodes, right: ActivationCodes, place: "Place", out: str) -> None:
        """(..., M, K) and (..., N, K) or (..., K, N) -> (..., M, N), times ``place.factor``."""
        graph, operand, zeros = self._graph, right.operand, None
        tensor = self._turn(right.tensor, place.rank) if product.transposed else right.tensor
        if right.zero.ndim:
            zeros = self._along_columns(zero_of(graph, right, TensorProto.INT32), right.zero, product)
        zero = np.asarray(0) if right.zero.ndim else right.zero
        factors = Right(tensor, zero, right.signed, zeros)
        columns = self._steps_of_columns(operand, product)
        columns = self._times(columns, place.factor)
        terms = self._terms_of_shifts(product, left, right, place, tensor, columns)
        end = None if terms else out
        if self._fused and left.zero.ndim == 0 and zeros is None and operand.step.ndim == 0:
            scaled = self._scaled(product.name, left, factors, columns, None, end)
        else:
            summed = self._multiply(product.name, left, factors, place.depth)
            scaled = self._scale(summed, left, columns, operand.step.ndim > 0, out=end)
        for index, term in enumerate(terms, 1):
            scaled = graph.op("Add", scaled, term, out=out if index == len(terms) else None)

    def _steps_of_columns(self, operand: Operand, product: Product) -> str:
        """The grid steps of a right operand, as factors of the columns of the product."""
        if product.transposed and axis_of(operand.step.shape) == -2:  # one dimension is aligned with the columns
            return step_of(self._graph, operand)
        return self._along_columns(steps_like(self._graph, operand), operand.step, product)

    def _along_columns(self, tensor: str, array: NDArray[Any], product: Product) -> str:
        """Align a tensor of the right operand's rows with the product's columns if that operand is transposed."""
        if not product.transposed or array.ndim == 0:
            return tensor
        return self._graph.op("Reshape", tensor, self._graph.shape(_turned(array).shape))

    def _times(self, tensor: str, factor: float) -> str:
        return tensor if factor == 1.0 else self._graph.op("Mul", tensor, self._graph.floats(factor))

    def _scaled(
        self, name: str, left: ActivationCodes, right: Right, columns: str, bias: str | None, out: str | None
    ) -> str:
        """A product with one zero point on its left, its grid steps and its bias, by one operator of ONNX Runtime.

        Args:
            name: Name of the node.
            left: Left operand; grid steps of its rows are multiplied behind the operator.
            right: Right operand.
            columns: Name of the grid steps of the columns, one or a vector.
            bias: Name of what is added to each row, or None.
            out: Name of the result.
        """
        graph, rows = self._graph, left.operand.step.ndim > 0
        step = graph.floats(1.0) if rows else step_of(graph, left.operand)
        zeros = (
            graph.constant(zero_point(left.zero, signed=left.signed)),
            graph.constant(zero_point(right.zero, signed=right.signed)),
        )
        inputs = (left.tensor, right.tensor, step, columns, *zeros)
        inside = () if bias is None or rows else (bias,)
        last = None if rows else out
        product = graph.op("MatMulIntegerToFloat", *inputs, *inside, out=last, name=name, domain=MICROSOFT)
        if not rows:
            return product
        scaled = graph.op("Mul", product, steps_like(graph, left.operand), out=None if bias else out)
        return scaled if bias is None else graph.op("Add", scaled, bias, out=out)

    def _multiply(self, name: str, left: ActivationCodes, right: Right, depth: int) -> str:
        """``sum((left + zero) * (right + zero))`` over ``depth`` terms, int32.

        The operator takes one zero point for the left factor and one for each column of a weight; everything else is
        added as sums of rows and columns.
        """
        graph = self._graph
        zeros = (
            graph.constant(zero_point(left.zero if left.zero.ndim == 0 else np.asarray(0), signed=False)),
            graph.constant(zero_point(right.zero, signed=right.signed)),
        )
        summed = graph.op("MatMulInteger", left.tensor, right.tensor, *zeros, name=name)
        if left.zero.ndim:
            ones = graph.constant(np.ones((1, depth), np.uint8))
            columns = graph.op("MatMulInteger", ones, right.tensor, graph.constant(np.uint8(0)), zeros[1])
            columns = graph.op("Mul", zero_of(graph, left, TensorProto.INT32), columns)
            summed = graph.op("Add", summed, columns)
        if right.zeros is not None:
            rows = graph.op("Mul", self._sum_of_rows(left, depth), right.zeros)
            summed = graph.op("Add", summed, rows)
        return summed

    def _sum_of_rows(self, left: ActivationCodes, depth: int) -> str:
        """``sum(left + zero)`` of each row, int32, (..., M, 1)."""
        graph = self._graph
        ones = graph.constant(np.ones((depth, 1), np.int8))
        if left.zero.ndim == 0:
            return graph.op("MatMulInteger", left.tensor, ones, graph.constant(zero_point(left.zero, signed=False)))
        rows = graph.op("MatMulInteger", left.tensor, ones)
        zeros = graph.op("Mul", zero_of(graph, left, TensorProto.INT32), graph.constant(np.int32(depth)))
        return graph.op("Add", rows, zeros)

    def _scale(
        self, summed: str, left: ActivationCodes, columns: str | None, by_column: bool = False, out: str | None = None
    ) -> str:
        """Multiply integers by the grid steps of their rows and columns, float32.

        Args:
            summed: Name of the int32 sums.
            left: Left operand, whose grid steps belong to the rows.
            columns: Name of the grid steps of the columns, or None.
            by_column: Whether there is one for each column.
            out: Name of the result.
        """
        graph, rows = self._graph, left.operand
        attributes = axis_attribute(rows.step, left.rank)
        if attributes:  # one pass for the conversion and the grid steps of the rows
            steps = step_of(graph, rows)
            if columns is None or by_column:
                scaled = graph.op("DequantizeLinear", summed, steps, out=None if columns else out, **attributes)
                return graph.op("Mul", scaled, columns, out=out) if columns else scaled
            return graph.op("DequantizeLinear", summed, graph.op("Mul", steps, columns), out=out, **attributes)
        steps = steps_like(graph, rows)
        scaled = graph.op("Cast", summed, to=TensorProto.FLOAT)
        if columns is not None and rows.step.ndim and by_column:
            scaled = graph.op("Mul", scaled, steps)
            return graph.op("Mul", scaled, columns, out=out)
        return graph.op("Mul", scaled, graph.op("Mul", steps, columns) if columns else steps, out=out)

    def _terms_of_shifts(
        self, product: Product, left: ActivationCodes, right: ActivationCodes, place: "Place", turned: str, steps: str
    ) -> list[str]:
        """What the shifts of two activations add to their product: a term for each row, each column, or both.

        Args:
            product: The product to compute.
            left: Codes of the left operand.
            right: Codes of the right operand.
            place: Its dimensions and factor.
            turned: Name of the codes of the right operand, (..., K, N).
            steps: Name of its grid steps times the factor of the product; one, or one for each column.
        """
        graph, rows, columns = self._graph, [], []
        ours, theirs = left.operand.after, right.operand.after
        if theirs is not None and product.transposed:  # (..., 1, K): a number for each row of the product
            if not product.before_softmax:
                shift = graph.op("Reshape", after_of(graph, right.operand), graph.shape(_turned(theirs).shape))
                rows.append(graph.op("MatMul", write_values(graph, left), self._times(shift, place.factor)))
        elif theirs is not None:  # (..., 1, N): the sums of the rows of the left operand, times the shift
            sums, shift = (
                self._sum_of_rows(left, place.depth),
                self._times(after_of(graph, right.operand), place.factor),
            )
            if ours is None:
                rows.append(self._scale(sums, left, shift, by_column=True))
            else:
                sums = self._scale(sums, left, None)
                rows.append(graph.op("Mul", graph.op("Add", sums, graph.floats(ours.sum(-1, keepdims=True))), shift))
        if ours is not None:  # (..., 1, K): a number for each column of the product
            shift = after_of(graph, left.operand)
            shift = shift if ours.ndim > 1 else graph.op("Reshape", shift, graph.shape([1, -1]))
            codes = graph.op("Cast", turned, to=TensorProto.FLOAT)
            if right.zero.any():
                zero = self._along_columns(zero_of(graph, right, TensorProto.FLOAT), right.zero, product)
                codes = graph.op("Add", codes, zero)
            columns.append(graph.op("Mul", graph.op("MatMul", shift, codes), steps))
        if product.key_term is not None:
            term = graph.floats(place.factor * product.key_term[:, :, None])
            columns.append(self._turn(graph.op("MatMul", write_values(graph, left), term), place.rank))
        return rows + ([graph.op("Add", *columns)] if len(columns) == 2 else columns)

    def _turn(self, tensor: str, rank: int) -> str:
        """Exchange the last two dimensions."""
        return self._graph.op("Transpose", tensor, perm=[*range(rank - 2), rank - 1, rank - 2])


@dataclass(frozen=True)
class Place:
    """The dimensions and the factor of a product of two activations.

    Attributes:
        rank: Number of dimensions of the right factor.
        depth: Number of terms that are summed.
        factor: Number that the product is multiplied by.
    """

    rank: int
    depth: int
    factor: float


def zero_point(zero: NDArray[np.int64], *, signed: bool) -> NDArray[np.integer]:
    """The zero point that the operators subtract."""
    return (-zero).astype(np.int8 if signed else np.uint8)


def _rows(array: Array) -> Array:
    """``array`` with at least two dimensions."""
    return array if array.ndim > 1 else array.reshape(1, -1)


def _turned(array: NDArray[Any]) -> NDArray[Any]:
    """Exchange the last two dimensions."""
    return array if array.ndim == 0 else _rows(array).swapaxes(-2, -1)
