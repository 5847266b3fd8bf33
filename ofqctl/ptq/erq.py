"""ERQ (Zhong et al., ICML 2024): ridge regression against the errors of activations, then against those of weights.

Layer by layer, on what the quantized network so far gives each layer, before and after its own quantizer. All that is
kept of the images is two matrices of second moments a layer, so memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.grids import Grid
from ofqctl.hooks import attached
from ofqctl.layers import QuantConv2d, QuantLinear
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Piece, Reached, walk
from ofqctl.recipe.refining import ERQStep


@dataclass
class Moments:
    """Second moments of a layer's inputs, means over all rows, weighed; float64.

    Attributes:
        own: ``E[x_q x_q^T]`` of the quantized inputs, (in, in).
        cross: ``E[x x_q^T]`` of the inputs before and after their quantizer, (in, in).
    """

    own: Tensor
    cross: Tensor


def refine_by_regression(task: Task, step: ERQStep) -> None:
    """Both stages on every Linear and convolution, in the order in which they run."""
    for piece in walk(task.model, task.original, task.plan, task.images):
        task.progress("erq", piece.number, piece.count)
        if task.clock.over:
            task.notes.append(f"erq: the time budget allowed {piece.number} of {piece.count} blocks")
            break
        for name in _layers_in_order(piece):
            layer = piece.quantized.get_submodule(name)
            assert isinstance(layer, QuantLinear | QuantConv2d)
            moments = moments_of(_inputs(piece, layer), step.weighing)
            _against_activation_error(layer, moments, step.ridge)
            _against_weight_error(layer, moments, step)
        task.progress("erq", piece.number + 1, piece.count)
    task.fitted = task.images.images


def _layers_in_order(piece: Piece) -> list[str]:
    """Names, in the unit, of the quantized layers as they are called."""
    called: list[str] = []
    hooks = (
        module.register_forward_pre_hook(lambda _m, _a, n=name: called.append(n))
        for name, module in piece.quantized.named_modules()
        if _can_be_solved(module)
    )
    with attached(hooks), torch.no_grad():
        piece.run(piece.inputs[0][:1])
    return [name for name in dict.fromkeys(called) if called.count(name) == 1]


def _can_be_solved(module: nn.Module) -> bool:
    if not isinstance(module, QuantLinear | QuantConv2d) or module.weight_quantizer is None:
        return False
    if isinstance(module, QuantLinear):
        return True
    return module.groups == 1 and isinstance(module.padding, tuple) and not module.pads_same


def moments_of(batches: Iterable[tuple[Tensor, Tensor]], weighing: float) -> Moments:
    """Second moments of rows, each with a weight.

    The next LayerNorm divides by what a massive activation makes large, so that an error there matters less than
    elsewhere; unweighted, a handful of such rows would decide what all columns make up for.

    Args:
        batches: Rows before and after their quantizer, (rows, in) each.
        weighing: A row weighs its mean square to minus this power.
    """
    own = cross = torch.zeros((), dtype=torch.float64)
    rows = 0
    for exact, quantized in batches:
        square = exact.square().mean(dim=1, keepdim=True).clamp(min=torch.finfo(exact.dtype).tiny)
        weighed = quantized * square.pow(-weighing)
        own = own + (quantized.T @ weighed).cpu().double()
        cross = cross + (exact.T @ weighed).cpu().double()
        rows += len(quantized)
    return Moments(own / rows, cross / rows)


def _inputs(piece: Piece, layer: QuantLinear | QuantConv2d) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows that a layer sees of each batch, before and after its quantizer."""
    with torch.no_grad():
        for batch in piece.inputs:
            x = _input_of(layer, partial(piece.run, batch))
            yield _rows(layer, x), _rows(layer, layer.input(x))


def _input_of(layer: nn.Module, run: Callable[[], Tensor]) -> Tensor:
    """What ``layer`` is given when ``run`` is called; nothing behind it is computed."""
    seen: list[Tensor] = []

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0])
        raise Reached

    with layer.register_forward_pre_hook(stop), suppress(Reached):
        run()
    return seen[0]


def _rows(layer: QuantLinear | QuantConv2d, x: Tensor) -> Tensor:
    """The inputs of single outputs, (rows, in), with a 1 behind them where the layer has a bias."""
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


def _against_activation_error(layer: QuantLinear | QuantConv2d, moments: Moments, ridge: float) -> None:
    """The weights whose outputs on quantized inputs are nearest to the float outputs."""
    matrix = _with_bias(layer)
    change = torch.linalg.solve(_regularised(moments.own, ridge), (matrix @ (moments.cross - moments.own)).T).T
    _install(layer, matrix + change)
    assert layer.weight_quantizer is not None
    layer.weight_quantizer.observe(layer.latent().detach())
    layer.weight_quantizer.finish()


def _regularised(moments: Tensor, ridge: float) -> Tensor:
    return moments + ridge * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)


def _against_weight_error(layer: QuantLinear | QuantConv2d, moments: Moments, step: ERQStep) -> None:
    """Fix half of the columns that are left, let the rest make up for their error, and go on with the rest."""
    matrix, quantizer = _with_bias(layer), layer.weight_quantizer
    assert quantizer is not None
    inputs = layer.weight[0].numel()
    encoded = quantizer.encode(layer.latent().detach())

    def spread(tensor: Tensor) -> Tensor:
        return tensor.cpu().double().expand(layer.weight.shape).flatten(1)

    all_steps, grid = spread(encoded.step), encoded.grid.map(spread)
    codes = torch.zeros_like(matrix[:, :inputs])
    first = 0
    while first < inputs:
        last = first + (inputs - first + 1) // 2
        now, later = slice(first, last), slice(last, len(moments.own))
        steps, part = all_steps[:, now], grid.map(itemgetter((slice(None), now)))
        codes[:, now] = refine_rounding(matrix[:, now], steps, part, moments.own[now, now], rounds=step.rounds)
        error = matrix[:, now] - steps * part.points(codes[:, now])
        matrix[:, now] -= error
        if later.start < later.stop:
            wanted = (error @ moments.own[now, later]).T
            matrix[:, later] += torch.linalg.solve(_regularised(moments.own[later, later], step.ridge), wanted).T
        first = last
    fixed = codes.reshape(layer.weight.shape).to(encoded.codes)
    latent = quantizer.latent_of(replace(encoded, codes=fixed))
    matrix[:, :inputs] = latent.flatten(1).cpu()
    _install(layer, matrix)


def refine_rounding(weights: Tensor, step: Tensor, grid: Grid, moments: Tensor, *, rounds: int) -> Tensor:
    """Codes whose error ``d`` makes ``d M d^T`` small: from the nearest ones, one code a row is flipped at a time.

    A flip takes the neighbouring point on the other side of the weight. The one that lowers the row's error most is
    made, as long as there is one.

    Args:
        weights: (out, in).
        step: (out, in).
        grid: Of the codes.
        moments: ``M``, second moments of the inputs, (in, in).
        rounds: At most so many flips a row.

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
