"""What an exporter needs to know of a quantized model: its operands, weights and products, as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ofqctl.grids import Encoded, UniformGrid
from ofqctl.packing import pack
from ofqctl.quantizers import Quantizer
from ofqctl.quantizers.cores import MIN_STEP

Array = NDArray[np.float32]
Style = Literal["integer", "qdq"]
"""Products on integers wherever that is exact; or ordinary products between QuantizeLinear and DequantizeLinear."""
ProductKind = Literal["linear", "conv2d", "matmul"]


@dataclass(frozen=True)
class Operand:
    """An activation that becomes codes: ``value = step * (code + offset) + after``, relative to its row if ``dynamic``.

    Attributes:
        name: The quantizer's name in the model.
        grid: Range of the codes.
        step: > 0; aligned with the last dimensions of the tensor, as all others; () if it is one for all.
        offset: Integers, of the shape of ``step``; () if it is one for all.
        before: Added to the tensor ahead of rounding, or None.
        after: Added to the value, or None.
        dynamic: Whether all of this is of each row over its largest magnitude, which is multiplied again elsewhere.
    """

    name: str
    grid: UniformGrid
    step: Array
    offset: Array
    before: Array | None
    after: Array | None
    dynamic: bool = False

    @property
    def zero(self) -> NDArray[np.int64]:
        """What is added to a code counted from the grid's lowest, ``code - grid.low``, to give ``code + offset``."""
        return (self.offset + self.grid.low).astype(np.int64)


@dataclass(frozen=True)
class Weight:
    """A quantized weight as it is stored: the bytes and steps of ``model.safetensors``.

    Attributes:
        name: What it is stored under.
        shape: (out, in), (out, in, height, width), or (heads, out, in).
        grid: Range of the codes.
        codes: Integers of the grid, of that shape.
        step: As the plan has it.
        offset: Like ``step``, or () if it is one for all.
        transposed: Whether the output channels come last, see :meth:`as_matrix`.
    """

    name: str
    shape: tuple[int, ...]
    grid: UniformGrid
    codes: NDArray[np.int16]
    step: Array
    offset: Array
    transposed: bool = False

    @property
    def packed(self) -> bytes:
        """The codes, counted from the grid's lowest, as `ofqctl.packing` lays them out."""
        return pack(torch.from_numpy(self.codes) - self.grid.low, self.grid.bits).numpy().tobytes()

    @property
    def multiplier(self) -> int:
        """2 for a grid half a step off zero, so that ``multiplier * (code + offset)`` is an integer; else 1."""
        return 2 if self.offset.ndim == 0 and float(self.offset) == 0.5 else 1

    @property
    def widened(self) -> bool:
        """Whether these integers do not fit 8 bits."""
        return self.multiplier == 2 and self.grid.bits == 8

    @property
    def unit(self) -> Array:
        """What 1 of these integers is worth."""
        return self.step / np.float32(self.multiplier)

    @property
    def zero(self) -> NDArray[np.int64]:
        """What is added to ``multiplier * (code - grid.low)`` to give these integers."""
        return np.rint((self.offset + self.grid.low) * self.multiplier).astype(np.int64)

    @property
    def largest(self) -> int:
        """Largest magnitude of these integers."""
        ends = np.array([self.grid.low, self.grid.high]).reshape(2, *(1 for _ in self.offset.shape)) + self.offset
        return int(np.abs(np.rint(self.multiplier * ends)).max())

    def values(self) -> NDArray[np.float64]:
        """The decoded weight."""
        values: NDArray[np.float64] = (self.codes.astype(np.float64) + self.offset) * self.step
        return values

    def as_matrix(self) -> "Weight":
        """(in, out), as the right factor of a product; from (..., in) or (out, in, height, width)."""
        depth = self.shape[-1] if len(self.shape) < 4 else int(np.prod(self.shape[1:]))
        codes = np.ascontiguousarray(self.codes.reshape(-1, depth).T)
        offset = self.offset.reshape(-1) if self.offset.ndim else self.offset
        return Weight(self.name, codes.shape, self.grid, codes, self.step.reshape(-1), offset, transposed=True)


@dataclass(frozen=True)
class Window:
    """How a convolution moves over its input.

    Attributes:
        strides: Of height and width.
        pads: Top, left, bottom, right; zeros are padded.
        dilations: Of height and width.
        groups: Number of groups of channels.
        size: Of the input: channels, height, width.
    """

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int
    size: tuple[int, int, int]

    def moves(self, kernel: Sequence[int]) -> tuple[int, int]:
        """Height and width of the output for the height and width of a kernel."""
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
        name: The name of the module, or of the attention block and what is multiplied in it.
        kind: What it computes.
        operands: Quantized activations, left before right.
        weight: Its quantized weight, or None.
        bias: Added to the product, (out,), or None.
        transposed: Whether the right one of two activations is (..., N, K) and not (..., K, N).
        before_softmax: Whether a softmax over the columns follows, so that what is the same in a whole row is left out.
        key_term: What multiplies each row of the left operand and is added to that column, (heads, K), or None.
        window: Of a convolution.
        obstacle: Why it is not computed on integers, or None.
    """

    name: str
    kind: ProductKind
    operands: tuple[Operand, ...]
    weight: Weight | None = None
    bias: Array | None = None
    transposed: bool = False
    before_softmax: bool = False
    key_term: Array | None = None
    window: Window | None = None
    obstacle: str | None = None

    @property
    def dynamic(self) -> bool:
        """Whether rows or columns of the product are still to be multiplied by what an operand is relative to."""
        return any(operand.dynamic for operand in self.operands)


@dataclass
class Sites:
    """Everything in a model that its markers name.

    Attributes:
        style: How products are written.
        operands: By name.
        weights: By name.
        products: By name, in the order of the calls; a second call of a module has a name of its own.
    """

    style: Style
    operands: dict[str, Operand] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)


def operand_of(name: str, quantizer: Quantizer) -> Operand:
    """The numbers of an activation quantizer; what an offset has beyond an integer is a shift ahead and behind."""
    step = quantizer.step.detach().clamp(min=MIN_STEP)
    offset = torch.as_tensor(quantizer.offset).detach()
    beyond = (offset - offset.round()) * step
    before: Tensor | None = quantizer.before
    after: Tensor | None = quantizer.after
    if beyond.any():
        before = -beyond if before is None else before - beyond
        after = beyond if after is None else after + beyond
    return Operand(
        name,
        quantizer.grid,
        _shared(step),
        _shared(offset.round()),
        None if before is None else _array(before),
        None if after is None else _array(after),
        quantizer.plan.dynamic,
    )


def weight_of(name: str, encoded: Encoded) -> Weight:
    """The numbers of a quantized weight."""
    codes = encoded.codes.detach().cpu().to(torch.int16)
    offset = _shared(torch.as_tensor(encoded.offset))
    return Weight(name, tuple(codes.shape), encoded.grid, codes.numpy(), _array(encoded.step), offset)


def obstacle_of(product: Product) -> str | None:
    """Why ``product`` cannot be computed on integers, or None."""
    if not product.operands:
        return "its input is not quantized"
    if product.kind != "matmul" and product.weight is None:
        return "its weight is not quantized"
    if product.kind == "matmul":
        return _obstacle_of_matmul(*product.operands, transposed=product.transposed)
    assert product.weight is not None
    if product.kind == "linear":
        varies = _varies(product.operands[0], -1)
        return "its input has a step for each channel, and channels are summed" if varies else None
    return _obstacle_of_convolution(product.operands[0], product.weight, product.window)


def _obstacle_of_matmul(left: Operand, right: Operand, *, transposed: bool) -> str | None:
    summed = -1 if transposed else -2
    if _varies(left, -1) or _varies(right, summed):
        return "steps differ along the dimension that is summed"
    if left.after is not None and _extent(left.after, -2) > 1:
        return "its left operand has a shift for each row"
    if right.after is not None and _extent(right.after, -2) > 1:
        return "its right operand has a shift for each row"
    return None


def _obstacle_of_convolution(operand: Operand, weight: Weight, window: Window | None) -> str | None:
    assert window is not None
    if weight.offset.ndim:
        return "its weight has a zero point for each channel"
    if weight.widened:
        return "half steps at 8 bits take 9 bits as integers"
    if operand.zero.ndim and window.groups > 1:
        return "its input has a zero point for each channel"
    few = window.groups == 1 and window.size[0] <= MOST_CHANNELS
    if operand.step.ndim and not few and window.groups != window.size[0]:
        return "its input has a step for each channel, and channels are summed"
    return None


MOST_CHANNELS = 4  # with a step for each input channel, one convolution a channel; more would cost too much


def _varies(operand: Operand, dimension: int) -> bool:
    return max(_extent(operand.step, dimension), _extent(operand.offset, dimension)) > 1


def _extent(array: Array, dimension: int) -> int:
    """Length of a dimension counted from the end; 1 if there is none."""
    return array.shape[dimension] if array.ndim >= -dimension else 1


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().float().numpy()


def _shared(tensor: Tensor) -> Array:
    """As an array; of shape () if all elements are equal."""
    array = _array(tensor)
    return array.reshape(-1)[0].reshape(()) if array.size and (array == array.reshape(-1)[0]).all() else array
