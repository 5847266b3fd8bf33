"""Products computed on integer codes: what one operator computes of them, and the terms that are added to it.

With ``value = step * (code + zero) + after`` for both factors, a product is

    row step * column step * sum((code + zero) * (code + zero)) + terms of the shifts,

where the terms of the shifts have rank one, or are constant if one factor is a weight. The operator takes one step and
one zero of each activation, and those of each column of a weight. Other steps are multiplied behind it, and what other
zeros have beyond a common one adds terms of rank one, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ofqctl.export.activations import ActivationCodes, after_of, step_of, steps_like, write_values
from ofqctl.export.arithmetic import Array, Operand
from ofqctl.export.graph import Writer
from ofqctl.export.multiply import Left, Multiply, Right, common_zero
from ofqctl.export.sites import Product


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


@dataclass(frozen=True)
class _Factor:
    """Constant grid steps that are multiplied behind the operator of a product.

    Attributes:
        tensor: Name of the tensor.
        shape: Its shape.
    """

    tensor: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Columns:
    """The right one of two activations, aligned with the columns of the product.

    Attributes:
        right: What the operator takes.
        behind: Steps that it does not take.
        beyond: What the zeros have beyond those that it takes, times all steps; broadcasts to (..., 1, N).
    """

    right: Right
    behind: list[_Factor]
    beyond: Array


class IntegerProducts:
    """Writes matrix products on integers.

    Args:
        multiply: Writes the operator of each product.
    """

    def __init__(self, multiply: Multiply) -> None:
        self._multiply, self._graph = multiply, multiply.graph

    def linear(self, product: Product, codes: ActivationCodes, out: str) -> None:
        """(..., in) -> (..., out)."""
        graph, operand = self._graph, codes.operand
        assert product.weight is not None
        weight = product.weight.as_matrix()
        constant = np.zeros(weight.shape[1]) if product.bias is None else product.bias.astype(np.float64)
        if operand.after is not None:
            shift = np.broadcast_to(operand.after.astype(np.float64).reshape(-1), weight.shape[:1])
            constant = constant + shift @ weight.values()
        terms, (left, beyond) = [], self._left(codes)
        if beyond.any():
            sums = weight.values().sum(axis=0, keepdims=True)
            terms.append(graph.op("MatMul", graph.floats(np.atleast_2d(beyond)), graph.floats(sums)))
        if weight.widened:  # the half steps
            units = self._multiply.weights.units(weight)
            terms.append(graph.op("Mul", self._sums_of_rows(codes, weight.shape[0]), units))
        right = self._multiply.weight(product.name, weight)
        bias, rows = graph.floats(constant) if constant.any() else None, _rows(graph, operand)
        if weight.overflows:
            rest = self._multiply("", left, self._multiply.excess(product.name, weight))
            for factor in rows:
                rest = graph.op("Mul", rest, factor.tensor)
            terms.append(rest)
        if not rows and not terms:
            self._multiply(product.name, left, right, bias, out)
        else:
            terms += [] if bias is None else [bias]
            self._write(product.name, left, right, rows, terms, out)

    def matmul(self, product: Product, left: ActivationCodes, right: ActivationCodes, place: Place, out: str) -> None:
        """(..., M, K) and (..., N, K) or (..., K, N) -> (..., M, N), times ``place.factor``."""
        (ours, beyond), columns = self._left(left), self._columns(product, right, place)
        terms = self._terms_of_zeros(left, beyond, columns, place)
        terms += self._terms_of_shifts(product, left, right, place, columns)
        factors = _rows(self._graph, left.operand) + columns.behind
        self._write(product.name, ours, columns.right, factors, terms, out)

    def _write(
        self, name: str, left: Left, right: Right, factors: list[_Factor], terms: Sequence[str], out: str
    ) -> None:
        """Write a product, times ``factors``, plus ``terms``."""
        parts = [("Mul", factor) for factor in self._joined(factors)] + [("Add", term) for term in terms]
        total = self._multiply(name, left, right, out=None if parts else out)
        for index, (kind, operand) in enumerate(parts, 1):
            total = self._graph.op(kind, total, operand, out=out if index == len(parts) else None)

    def _joined(self, factors: list[_Factor]) -> list[str]:
        """The factors; their product if that is not larger than the larger one."""
        if len(factors) < 2:
            return [factor.tensor for factor in factors]
        first, second = factors
        whole = np.prod(np.broadcast_shapes(first.shape, second.shape))
        if whole > max(np.prod(first.shape), np.prod(second.shape)):
            return [first.tensor, second.tensor]
        return [self._graph.op("Mul", first.tensor, second.tensor)]

    def _left(self, codes: ActivationCodes) -> tuple[Left, Array]:
        """A left factor, and what its zeros have beyond the one that the operator takes, times the steps."""
        operand, (common, beyond) = codes.operand, common_zero(codes)
        step = self._graph.floats(1.0) if operand.step.ndim else step_of(self._graph, operand)
        return Left(codes.tensor, common, step, codes.rank), (beyond * operand.step).astype(np.float32)

    def _columns(self, product: Product, codes: ActivationCodes, place: Place) -> _Columns:
        """A right factor that is an activation."""
        graph, operand = self._graph, codes.operand
        tensor = self._turn(codes.tensor, place.rank) if product.transposed else codes.tensor
        align = _turned if product.transposed else np.asarray
        step, zero = align(operand.step), align(codes.zero)
        taken = zero if zero.ndim == 0 else np.rint(zero.mean()).astype(np.int64)
        behind, inside = [], graph.floats(place.factor)
        if step.ndim:
            behind = [_Factor(graph.op("Reshape", steps_like(graph, operand), graph.shape(step.shape)), step.shape)]
        else:
            inside = self._times(step_of(graph, operand), place.factor)
        beyond = ((zero - taken + align(operand.rest)) * step * np.float32(place.factor)).astype(np.float32)
        return _Columns(Right(tensor, taken, inside, codes.signed), behind, beyond)

    def _sums_of_rows(self, codes: ActivationCodes, depth: int) -> str:
        """``sum(step * (code + zero))`` of each row, (..., M, 1)."""
        graph, (left, beyond) = self._graph, self._left(codes)
        ones = Right(graph.constant(np.ones((depth, 1), np.int8)), np.zeros((), np.int64), graph.floats(1.0))
        sums = self._multiply("", left, ones)
        for factor in _rows(graph, codes.operand):
            sums = graph.op("Mul", sums, factor.tensor)
        return graph.op("Add", sums, graph.floats(depth * beyond)) if beyond.any() else sums

    def _terms_of_zeros(self, left: ActivationCodes, beyond: Array, columns: _Columns, place: Place) -> list[str]:
        """What the zeros that the operator does not take add to a product.

        Args:
            left: Codes of the left operand.
            beyond: What its zeros have beyond the common one, times its steps.
            columns: The right operand.
            place: Dimensions and factor of the product.
        """
        graph, terms = self._graph, []
        if beyond.any():
            ones = Left(graph.constant(np.ones((1, place.depth), np.uint8)), 0, graph.floats(1.0), 2)
            sums = self._multiply("", ones, columns.right)
            for factor in columns.behind:
                sums = graph.op("Mul", sums, factor.tensor)
            terms.append(graph.op("Mul", graph.floats(beyond), sums))
        if columns.beyond.any():
            terms.append(graph.op("Mul", self._sums_of_rows(left, place.depth), graph.floats(columns.beyond)))
        return terms

    def _terms_of_shifts(
        self, product: Product, left: ActivationCodes, right: ActivationCodes, place: Place, columns: _Columns
    ) -> list[str]:
        """What the shifts of two activations add to their product: a term for each row, each column, or both.

        Args:
            product: The product to compute.
            left: Codes of the left operand.
            right: Codes of the right operand.
            place: Its dimensions and factor.
            columns: The right operand as a factor.
        """
        graph, rows, others = self._graph, [], []
        ours, theirs = left.operand.after, right.operand.after
        if theirs is not None and product.transposed:  # (..., 1, K): a number for each row of the product
            if not product.before_softmax:
                shift = graph.op("Reshape", after_of(graph, right.operand), graph.shape(_turned(theirs).shape))
                rows.append(graph.op("MatMul", write_values(graph, left), self._times(shift, place.factor)))
        elif theirs is not None:  # (..., 1, N): the sums of the rows of the left operand, times the shift
            sums = self._sums_of_rows(left, place.depth)
            if ours is not None:
                sums = graph.op("Add", sums, graph.floats(ours.sum(-1, keepdims=True)))
            rows.append(graph.op("Mul", sums, self._times(after_of(graph, right.operand), place.factor)))
        if ours is not None:  # (..., 1, K): a number for each column of the product
            shift = after_of(graph, left.operand)
            shift = shift if ours.ndim > 1 else graph.op("Reshape", shift, graph.shape([1, -1]))
            term = graph.op("MatMul", shift, self._multiply.values(columns.right))
            for factor in columns.behind:
                term = graph.op("Mul", term, factor.tensor)
            if columns.beyond.any():
                term = graph.op("Add", term, graph.floats(ours.sum(-1, keepdims=True) * columns.beyond))
            others.append(term)
        if product.key_term is not None:
            vector = graph.floats(place.factor * product.key_term[:, :, None])
            others.append(self._turn(graph.op("MatMul", write_values(graph, left), vector), place.rank))
        return rows + ([graph.op("Add", *others)] if len(others) == 2 else others)

    def _times(self, tensor: str, factor: float) -> str:
        return tensor if factor == 1.0 else self._graph.op("Mul", tensor, self._graph.floats(factor))

    def _turn(self, tensor: str, rank: int) -> str:
        """Exchange the last two dimensions."""
        return self._graph.op("Transpose", tensor, perm=[*range(rank - 2), rank - 1, rank - 2])


def _rows(graph: Writer, operand: Operand) -> list[_Factor]:
    """The grid steps of rows, as a factor of the product; nothing if there is one for all."""
    return [_Factor(steps_like(graph, operand), operand.step.shape)] if operand.step.ndim else []


def _turned(array: NDArray[Any]) -> NDArray[Any]:
    """Exchange the last two dimensions."""
    return array if array.ndim == 0 else np.atleast_2d(array).swapaxes(-2, -1)
