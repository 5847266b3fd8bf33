"""ERQ: ridge regression against the error of activations, then of weights (Zhong et al., ICML 2024, arXiv 2407.06794).

Each layer's weights are moved so that its output is right again although its inputs are quantized, and are then rounded
column by column, each time correcting for what was rounded. A minute for a ViT-Tiny, without gradients; far more
accurate than rounding from 6 bits down.

It works layer by layer, on the inputs that the network quantized so far gives each layer, in float and quantized. Only
two matrices of second moments are kept for a layer, so memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.grids import Grid
from ofqctl.hooks import attached
from ofqctl.layers import QuantConv2d, QuantLinear
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Piece, Reached, walk
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen


class ERQ(Frozen):
    """Reduce the errors of quantized activations and weights by ridge regression (ERQ), layer by layer.

    Attributes:
        ridge: Strength of the ridge, relative to the mean square of an input.
        rounds: Maximum number of codes in a row that are rounded the other way each time half of the columns is fixed.
        weighing: Exponent ``p``: the error on an input is weighted by its mean square to the power of ``-p``; 0 weights
            all inputs equally.
    """

    ridge: float = Field(default=0.05, gt=0.0)
    rounds: int = Field(default=100, ge=0)
    weighing: float = Field(default=0.5, ge=0.0, le=1.0)


@dataclass
class Moments:
    """Second moments of a layer's inputs: weighted means over all rows, float64.

    Attributes:
        own: ``E[x_q x_q^T]`` of the quantized inputs, (in, in).
        cross: ``E[x x_q^T]`` of float and quantized inputs, (in, in).
    """

    own: Tensor
    cross: Tensor


@PTQ_STAGES.register("erq", ERQ)
def refine_by_regression(task: Task, settings: ERQ) -> None:
    """Correct activation errors, then weight errors, in every Linear and convolution, in the order of their calls."""
    for piece in walk(task.model, task.original, task.plan, task.images):
        task.progress("erq", piece.number, piece.count)
        if task.clock.over:
            task.notes.append(f"erq: the time budget was used up after {piece.number} of {piece.count} blocks")
            break
        for name in _layers_in_order(piece):
            layer = piece.quantized.get_submodule(name)
            assert isinstance(layer, QuantLinear | QuantConv2d)
            moments = moments_of(_inputs(piece, layer), settings.weighing)
            _reduce_activation_error(layer, moments, settings.ridge)
            _reduce_weight_error(layer, moments, settings)
        task.progress("erq", piece.number + 1, piece.count)
    task.fitted = task.images.images


def _layers_in_order(piece: Piece) -> list[str]:
    """Names, within the unit, of the layers to correct, in the order of their calls."""
    called: list[str] = []
    hooks = (
        module.register_forward_pre_hook(lambda _m, _a, n=name: called.append(n))
        for name, module in piece.quantized.named_modules()
        if _can_be_corrected(module)
    )
    with attached(hooks), torch.no_grad():
        piece.run(piece.inputs[0][:1])
    return [name for name in dict.fromkeys(called) if called.count(name) == 1]


def _can_be_corrected(module: nn.Module) -> bool:
    if not isinstance(module, QuantLinear | QuantConv2d) or module.weight_quantizer is None:
        return False
    if isinstance(module, QuantLinear):
        return True
    return module.groups == 1 and isinstance(module.padding, tuple) and not module.pads_same


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


def _inputs(piece: Piece, layer: QuantLinear | QuantConv2d) -> Iterator[tuple[Tensor, Tensor]]:
    """The input rows of a layer for each batch, in float and quantized."""
    with torch.no_grad():
        for batch in piece.inputs:
            x = _input_of(layer, partial(piece.run, batch))
            yield _rows(layer, x), _rows(layer, layer.input(x))


def _input_of(layer: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """The input of ``layer`` when ``run`` is called; nothing after it is computed."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Reached

    with layer.register_forward_pre_hook(stop), suppress(Reached):
        run()
    return seen[0]


def _rows(layer: QuantLinear | QuantConv2d, x: Tensor) -> Tensor:
    """Inputs as a matrix with one row for each output position, (rows, in); a column of ones is appended for a bias."""
    if isinstance(layer, QuantConv2d):
        assert not isinstance(layer.padding, str)
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        x = patches.transpose(1, 2)
    rows = x.flatten(0, -2)
    return rows if layer.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _with_bias(layer: QuantLinear | QuantConv2d) -> Tensor:
    """Weight and bias as one matrix, (out, in) or (out, in + 1), float64."""
    weight = layer.weight.detach().flatten(1).cpu()
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.detach().cpu()[:, None]], dim=1)
    return weight.double()


def _install(layer: QuantLinear | QuantConv2d, matrix: Tensor) -> None:
    with torch.no_grad():
        inputs = layer.weight[0].numel()
        layer.weight.copy_(matrix[:, :inputs].reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(matrix[:, -1])


def _reduce_activation_error(layer: QuantLinear | QuantConv2d, moments: Moments, ridge: float) -> None:
    """Change the weights so that the outputs on quantized inputs are closest to the outputs on float inputs."""
    matrix = _with_bias(layer)
    change = torch.linalg.solve(_regularised(moments.own, ridge), (matrix @ (moments.cross - moments.own)).T).T
    _install(layer, matrix + change)
    assert layer.weight_quantizer is not None
    layer.weight_quantizer.observe(layer.latent().detach())
    layer.weight_quantizer.finish()


def _regularised(moments: Tensor, ridge: float) -> Tensor:
    """``moments`` plus a ridge, so that the system can be solved even where inputs are always 0."""
    strength = (ridge * moments.diagonal().mean()).clamp(min=torch.finfo(moments.dtype).tiny)
    return moments + strength * torch.eye(len(moments), dtype=moments.dtype)


def _reduce_weight_error(layer: QuantLinear | QuantConv2d, moments: Moments, settings: ERQ) -> None:
    """Round half of the remaining columns, correct the others for the error, and repeat with the others."""
    matrix, quantizer = _with_bias(layer), layer.weight_quantizer
    assert quantizer is not None
    inputs = layer.weight[0].numel()
    encoded = quantizer.encode(layer.latent().detach())

    def spread(tensor: Tensor) -> Tensor:
        return tensor.cpu().double().expand(layer.weight.shape).flatten(1)

    all_grid_steps, grid = spread(encoded.step), encoded.grid.map(spread)
    codes = torch.zeros_like(matrix[:, :inputs])
    first = 0
    while first < inputs:
        last = first + (inputs - first + 1) // 2
        now, later = slice(first, last), slice(last, len(moments.own))
        grid_steps, part = all_grid_steps[:, now], grid.map(itemgetter((slice(None), now)))
        codes[:, now] = refine_rounding(matrix[:, now], grid_steps, part, moments.own[now, now], rounds=settings.rounds)
        error = matrix[:, now] - grid_steps * part.points(codes[:, now])
        matrix[:, now] -= error
        if later.start < later.stop:
            wanted = (error @ moments.own[now, later]).T
            matrix[:, later] += torch.linalg.solve(_regularised(moments.own[later, later], settings.ridge), wanted).T
        first = last
    fixed = codes.reshape(layer.weight.shape).to(encoded.codes)
    latent = quantizer.latent_of(replace(encoded, codes=fixed))
    matrix[:, :inputs] = latent.flatten(1).cpu()
    _install(layer, matrix)


def refine_rounding(weights: Tensor, step: Tensor, grid: Grid, moments: Tensor, *, rounds: int) -> Tensor:
    """Codes whose rounding error ``d`` makes ``d M d^T`` small, found by flipping one code of a row at a time.

    The search starts from the nearest codes. A flip moves a code to the neighbouring point on the other side of the
    weight. In each round, each row makes the flip that lowers its error most, if any flip does.

    Args:
        weights: Float weights, (out, in).
        step: Grid step of each weight, (out, in).
        grid: Grid that the codes are on.
        moments: ``M``, second moments of the inputs, (in, in).
        rounds: Maximum number of flips in a row.

    Returns:
        Codes as floats, (out, in).
    """
    codes = grid.nearest(weights / step)
    error = step * grid.points(codes) - weights
    slope = error @ moments
    rows = torch.arange(len(weights))
    for _ in range(rounds):
        flipped = (codes - error.sign()).clamp(grid.range.low, grid.range.high)
        change = step * (grid.points(flipped) - grid.points(codes))
        gain = 2 * change * slope + change.square() * moments.diagonal()
        best, columns = gain.masked_fill(flipped == codes, torch.inf).min(dim=1)
        better = best < 0
        if not bool(better.any()):
            break
        r, c = rows[better], columns[better]
        codes[r, c] = flipped[r, c]
        error[r, c] += change[r, c]
        slope[r] += change[r, c][:, None] * moments[c]
    return codes
