"""The operators that multiply integers: those of ONNX Runtime, or those of the standard that runtimes recognize."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ofqctl.export.activations import ActivationCodes
from ofqctl.export.arithmetic import ExportedWeight
from ofqctl.export.codes import WeightWriter
from ofqctl.export.graph import Writer

MICROSOFT = "com.microsoft"  # domain of the operators that ONNX Runtime adds to the standard's
_INT16_MAX, _UINT8_MAX = 32767, 255


@dataclass(frozen=True)
class Left:
    """The left factor of a product of integers: ``step * (tensor + zero)``.

    Attributes:
        tensor: Name of the codes, (..., M, K), uint8.
        zero: Number to add to them, -255..0.
        step: Name of the grid step, a scalar.
        rank: Number of dimensions.
    """

    tensor: str
    zero: int
    step: str
    rank: int

    @property
    def zero_point(self) -> np.uint8:
        """What the operators subtract."""
        return np.uint8(-self.zero)


@dataclass(frozen=True)
class Right:
    """The right factor of a product of integers: ``step * (tensor + zero)``.

    Attributes:
        tensor: Name of the tensor, (..., K, N), or of the kernel of a convolution; int8 or uint8.
        zero: Number to add to it: a scalar, or one for each column, (N,).
        step: Name of the grid steps: a scalar, or one for each column, (N,).
        signed: Whether it is int8.
        columns: Number of steps; 1 for a scalar.
        name: Name of the initializer of its zero point. That of a constant needs one of its own, because ONNX Runtime
            cannot rewrite a shared one for CPUs without VNNI.
    """

    tensor: str
    zero: NDArray[np.int64]
    step: str
    signed: bool = True
    columns: int = 1
    name: str | None = None

    @property
    def zero_point(self) -> NDArray[np.integer]:
        """What the operators subtract."""
        return (-self.zero).astype(np.int8 if self.signed else np.uint8)


def saturates(left_bits: int, largest: int) -> bool:
    """Whether kernels of CPUs without VNNI, which add two products in 16 bits, may saturate.

    Args:
        left_bits: Bits of the unsigned left factor.
        largest: Largest magnitude of the signed right factor.
    """
    return 2 * ((1 << left_bits) - 1) * largest > _INT16_MAX


def common_zero(codes: ActivationCodes) -> tuple[int, NDArray[np.floating]]:
    """The zero that a left factor's operator takes, and what the zeros of the activation have beyond it."""
    common = int(np.clip(np.rint(codes.zero.mean()), -_UINT8_MAX, 0))
    return common, codes.zero - common + codes.operand.rest


class Multiply:
    """Writes one product of integers, with its grid steps and bias.

    Args:
        graph: Graph to write to.
        weights: Writes the weights.
        fused: Whether to write ONNX Runtime's own operator; else MatMul behind DequantizeLinear, in which compilers and
            ONNX Runtime recognize a product of integers.
    """

    def __init__(self, graph: Writer, weights: WeightWriter, *, fused: bool) -> None:
        self.graph, self.weights, self.fused = graph, weights, fused

    def __call__(self, name: str, left: Left, right: Right, bias: str | None = None, out: str | None = None) -> str:
        """``step * step * sum((tensor + zero) * (tensor + zero)) + bias``, float32.

        Args:
            name: Name of the node.
            left: Left factor.
            right: Right factor.
            bias: Name of what is added to each row, (N,), or None.
            out: Name of the result; a new one by default.
        """
        graph = self.graph
        if self.fused:
            zeros = graph.constant(left.zero_point), graph.constant(right.zero_point, right.name)
            inputs = (left.tensor, right.tensor, left.step, right.step, *zeros, *([] if bias is None else [bias]))
            return graph.op("MatMulIntegerToFloat", *inputs, out=out, name=name, domain=MICROSOFT)
        # ONNX Runtime makes a float Gemm of a matrix with a bias, so there is a further dimension
        apart, axis = bias is not None and left.rank == 2, graph.shape([0])
        tensor = graph.op("Unsqueeze", left.tensor, axis) if apart else left.tensor
        values = graph.op("DequantizeLinear", tensor, left.step, graph.constant(left.zero_point))
        product = graph.op("MatMul", values, self.values(right), out=out if bias is None else None, name=name)
        if bias is None:
            return product
        biased = graph.op("Add", product, bias, out=None if apart else out)
        return graph.op("Squeeze", biased, axis, out=out) if apart else biased

    def values(self, right: Right) -> str:
        """The values of a right factor, float32."""
        graph = self.graph
        if right.columns == 1:
            zero = graph.constant(right.zero_point.reshape(()), right.name)
            return graph.op("DequantizeLinear", right.tensor, graph.op("Reshape", right.step, graph.shape([])), zero)
        zero = graph.constant(np.broadcast_to(right.zero_point, (right.columns,)), right.name)
        return graph.op("DequantizeLinear", right.tensor, right.step, zero, axis=-1)

    def weight(self, product: str, weight: ExportedWeight) -> Right:
        """The weight of a product as int8; without its half steps if it is ``widened``.

        Args:
            product: Name of the product.
            weight: The weight, a matrix (in, out) or a kernel.
        """
        tensor, step = self.weights.integers(weight), self.weights.units(weight)
        zero = weight.zero - weight.centre
        right = Right(tensor, zero, step, columns=weight.step.size, name=f"{product}.zero_point")
        if not weight.widened:
            return right
        return replace(right, zero=np.zeros((), np.int64), step=self.graph.op("Mul", step, self.graph.floats(2.0)))

    def excess(self, product: str, weight: ExportedWeight) -> Right:
        """What the weight of a product has beyond int8, if it ``overflows``."""
        tensor, step = self.weights.excess(weight), self.weights.units(weight)
        zero = np.zeros((), np.int64)
        return Right(tensor, zero, step, columns=weight.step.size, name=f"{product}.excess_zero_point")
