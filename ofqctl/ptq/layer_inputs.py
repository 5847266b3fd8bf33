"""The inputs of single layers as rows, float and quantized, and their second moments."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.hooks import attached
from ofqctl.layers import QuantConv2d, QuantLinear
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Piece, Reached, walk

Layer = QuantLinear | QuantConv2d


@dataclass
class Moments:
    """Second moments of a layer's inputs: weighted means over all rows, float64.

    Attributes:
        own: ``E[x_q x_q^T]`` of the quantized inputs, (in, in).
        cross: ``E[x x_q^T]`` of float and quantized inputs, (in, in).
    """

    own: Tensor
    cross: Tensor


def every_layer(task: Task, stage: str) -> Iterator[tuple[Piece, str, Layer]]:
    """Every layer that rows can be collected of, unit by unit; it ends early, with a note, when the time is used up.

    Args:
        task: The task of a stage that changes each layer before it asks for the next.
        stage: Name of the stage, for progress and note.

    Yields:
        The unit, the name of the layer within it, and the layer.
    """
    for piece in walk(task.model, task.original, task.plan, task.images):
        task.progress(stage, piece.number, piece.count)
        if task.clock.over:
            task.notes.append(f"{stage}: the time budget was used up after {piece.number} of {piece.count} blocks")
            break
        for name, layer in layers_in_order(piece):
            yield piece, name, layer
        task.progress(stage, piece.number + 1, piece.count)
    task.fitted = task.images.images


def layers_in_order(piece: Piece) -> Iterator[tuple[str, Layer]]:
    """Name within the unit and module of each layer that rows can be collected of, in the order of their calls."""
    called: list[str] = []
    hooks = (
        module.register_forward_pre_hook(lambda _m, _a, n=name: called.append(n))
        for name, module in piece.quantized.named_modules()
        if _has_rows(module)
    )
    with attached(hooks), torch.no_grad():
        piece.run(piece.inputs[0][:1])
    for name in dict.fromkeys(called):
        layer = piece.quantized.get_submodule(name)
        if called.count(name) == 1 and isinstance(layer, QuantLinear | QuantConv2d):
            yield name, layer


def _has_rows(module: nn.Module) -> bool:
    if not isinstance(module, QuantLinear | QuantConv2d) or module.weight_quantizer is None:
        return False
    if isinstance(module, QuantLinear):
        return True
    return module.groups == 1 and isinstance(module.padding, tuple) and not module.pads_same


def quantized_inputs(piece: Piece, layer: Layer) -> Iterator[tuple[Tensor, Tensor]]:
    """The input rows of a layer for each batch, as they are and quantized, on the path of the quantized model."""
    with torch.no_grad():
        for batch in piece.inputs:
            x = _input_of(layer, partial(piece.run, batch))
            yield _rows(layer, x), _rows(layer, layer.input(x))


def both_inputs(piece: Piece, layer: Layer, original: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """The input rows of a layer for each batch: those of ``original`` in the float model, and its own, quantized."""
    with torch.no_grad():
        for batch, exact in zip(piece.inputs, piece.original_inputs, strict=True):
            x = _input_of(layer, partial(piece.run, batch))
            yield _rows(layer, _input_of(original, partial(piece.run_original, exact))), _rows(layer, layer.input(x))


def moments_of(batches: Iterable[tuple[Tensor, Tensor]], weighing: float) -> Moments:
    """Weighted second moments of rows.

    The LayerNorm that follows divides by the size of a massive activation, so that an error there matters less than
    elsewhere. Without weights, a handful of such rows would dominate the regression.

    Args:
        batches: Rows in float and quantized, (rows, in) each.
        weighing: Exponent ``p``: the weight of a row is its mean square to the power of ``-p``; rows of zeros have
            weight 0.
    """
    own = cross = torch.zeros((), dtype=torch.float64)
    rows = 0
    for exact, quantized in batches:
        square = exact.square().mean(dim=1, keepdim=True)
        weights = square.clamp(min=torch.finfo(exact.dtype).tiny).pow(-weighing)
        weighted = quantized * weights.masked_fill(square == 0, 0.0)
        own = own + (quantized.T @ weighted).cpu().double()
        cross = cross + (exact.T @ weighted).cpu().double()
        rows += len(quantized)
    return Moments(own / rows, cross / rows)


def damped(moments: Tensor, ridge: float) -> Tensor:
    """``moments`` plus ``ridge`` times their mean square, so that the system can be solved even for inputs of 0."""
    strength = (ridge * moments.diagonal().mean()).clamp(min=torch.finfo(moments.dtype).tiny)
    return moments + strength * torch.eye(len(moments), dtype=moments.dtype)


def _input_of(layer: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """The input of ``layer`` when ``run`` is called; nothing after it is computed."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Reached

    with layer.register_forward_pre_hook(stop), suppress(Reached):
        run()
    return seen[0]


def _rows(layer: Layer, x: Tensor) -> Tensor:
    """Inputs as a matrix with one row for each output position, (rows, in); a column of ones is appended for a bias."""
    if isinstance(layer, QuantConv2d):
        assert not isinstance(layer.padding, str)
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = patches.transpose(1, 2)
    rows = x.flatten(0, -2)
    return rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
