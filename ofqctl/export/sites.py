"""What an exporter needs to know about a quantized model: its products, with arrays of `ofqctl.export.arithmetic`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ofqctl.export.arithmetic import Array, ExportedWeight, Operand
from ofqctl.results.onnx import Target

ProductKind = Literal["linear", "conv2d", "matmul"]


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input.

    Attributes:
        strides: Strides of height and width.
        pads: Zero padding at the top, left, bottom and right.
        dilations: Dilations of height and width.
        groups: Number of groups of channels.
        size: Size of the input: channels, height, width.
    """

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int
    size: tuple[int, int, int]

    def moves(self, kernel: Sequence[int]) -> tuple[int, int]:
        """Height and width of the output, given those of the kernel."""
        top, left, bottom, right = self.pads
        outer = self.size[1] + top + bottom, self.size[2] + left + right
        height, width = (
            (length - dilation * (taps - 1) - 1) // stride + 1
            for length, taps, stride, dilation in zip(outer, kernel, self.strides, self.dilations, strict=True)
        )
        return height, width


@dataclass
class Product:
    """A matrix product or convolution of quantized operands.

    Attributes:
        name: Name of the module, or of the attention block with the product in it.
        kind: Kind of the product.
        operands: Quantized activations, the left one first.
        weight: Its quantized weight, or None.
        bias: Bias added to the product, (out,), or None.
        transposed: Whether the right activation is (..., N, K) instead of (..., K, N).
        before_softmax: Whether a softmax over the columns follows, so that terms that are constant in a row are
            omitted.
        key_term: Vector that each row of the left operand is multiplied by, added to that column, (heads, K); or None.
        window: Window of a convolution, or None.
        obstacle: Why it is not computed on integers, or None.
    """

    name: str
    kind: ProductKind
    operands: tuple[Operand, ...]
    weight: ExportedWeight | None = None
    bias: Array | None = None
    transposed: bool = False
    before_softmax: bool = False
    key_term: Array | None = None
    window: Window | None = None
    obstacle: str | None = None

    @property
    def dynamic(self) -> bool:
        """Whether rows or columns of the product must still be multiplied by magnitudes of a dynamic operand."""
        return any(operand.dynamic for operand in self.operands)


@dataclass
class Sites:
    """All quantizers, weights and products in a model that its markers name.

    Attributes:
        target: What the graph is for.
        operands: Quantized activations by name.
        weights: Quantized weights by name.
        products: Products by name, in the order of their calls; a second call of a module has its own name.
    """

    target: Target
    operands: dict[str, Operand] = field(default_factory=dict)
    weights: dict[str, ExportedWeight] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)


def obstacle_of(product: Product) -> str | None:
    """Why ``product`` cannot be computed on integers, or None."""
    if not product.operands:
        return "its input is not quantized"
    if product.kind != "matmul" and product.weight is None:
        return "its weight is not quantized"
    if any(operand.table is not None and not operand.table.integral for operand in product.operands):
        return "the points of its input are not integers of 8 bits"
    if product.kind == "matmul":
        return _obstacle_of_matmul(*product.operands, transposed=product.transposed)
    assert product.weight is not None
    if product.kind == "linear":
        varies = _varies(product.operands[0], -1)
        return product.weight.obstacle or (
            "its input has a grid step for each channel, and channels are summed" if varies else None
        )
    return product.weight.obstacle or _obstacle_of_convolution(product.operands[0], product.weight, product.window)


def _obstacle_of_matmul(left: Operand, right: Operand, *, transposed: bool) -> str | None:
    summed = -1 if transposed else -2
    if _varies(left, -1) or _varies(right, summed):
        return "grid steps differ along the dimension that is summed"
    if left.after is not None and _extent(left.after, -2) > 1:
        return "its left operand has a shift for each row"
    if right.after is not None and _extent(right.after, -2) > 1:
        return "its right operand has a shift for each row"
    return None


def _obstacle_of_convolution(operand: Operand, weight: ExportedWeight, window: Window | None) -> str | None:
    assert window is not None
    if weight.zero.ndim:
        return "its weight has a zero point for each channel"
    if weight.widened:
        return "half steps at 8 bits take 9 bits as integers"
    if weight.overflows:
        return "the integers of its weight take 9 bits"
    if operand.zero.ndim and window.groups > 1:
        return "its input has a zero point for each channel"
    few = window.groups == 1 and window.size[0] <= MOST_CHANNELS
    if operand.step.ndim and not few and window.groups != window.size[0]:
        return "its input has a grid step for each channel, and channels are summed"
    return None


MOST_CHANNELS = 4  # largest number of input channels with grid steps of their own; each needs a convolution


def _varies(operand: Operand, dimension: int) -> bool:
    return max(_extent(operand.step, dimension), _extent(operand.offset, dimension)) > 1


def _extent(array: Array, dimension: int) -> int:
    """Length of a dimension counted from the end; 1 if there is none."""
    return array.shape[dimension] if array.ndim >= -dimension else 1
