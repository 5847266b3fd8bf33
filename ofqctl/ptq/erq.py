"""ERQ: ridge regression against the error of activations, then of weights (Zhong et al., ICML 2024, arXiv 2407.06794).

Each layer's weights are moved so that its output is right again although its inputs are quantized, and are then rounded
column by column, each time correcting for what was rounded. A minute for a ViT-Tiny, without gradients; far more
accurate than rounding from 6 bits down.

It works layer by layer, on the inputs that the network quantized so far gives each layer, in float and quantized. Only
two matrices of second moments are kept for a layer, so memory does not grow with the number of images.
"""

import torch
from pydantic import Field
from torch import Tensor

from ofqctl.grids import Grid
from ofqctl.ptq.columns import Columns, install, matrix_of
from ofqctl.ptq.layer_inputs import Layer, Moments, damped, every_layer, moments_of, quantized_inputs
from ofqctl.ptq.task import Task
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


@PTQ_STAGES.register("erq", ERQ)
def refine_by_regression(task: Task, settings: ERQ) -> None:
    """Correct activation errors, then weight errors, in every Linear and convolution, in the order of their calls."""
    for piece, _, layer in every_layer(task, "erq"):
        moments = moments_of(quantized_inputs(piece, layer), settings.weighing)
        _reduce_activation_error(layer, moments, settings.ridge)
        _reduce_weight_error(layer, moments, settings)


def _reduce_activation_error(layer: Layer, moments: Moments, ridge: float) -> None:
    """Change the weights so that the outputs on quantized inputs are closest to the outputs on float inputs."""
    matrix = matrix_of(layer)
    change = torch.linalg.solve(damped(moments.own, ridge), (matrix @ (moments.cross - moments.own)).T).T
    install(layer, matrix + change)
    assert layer.weight_quantizer is not None
    layer.weight_quantizer.observe(layer.latent().detach())
    layer.weight_quantizer.finish()


def _reduce_weight_error(layer: Layer, moments: Moments, settings: ERQ) -> None:
    """Round half of the remaining columns, correct the others for the error, and repeat with the others."""
    columns = Columns(layer)
    matrix, inputs = columns.matrix, columns.inputs
    first = 0
    while first < inputs:
        last = first + (inputs - first + 1) // 2
        now, later = slice(first, last), slice(last, len(moments.own))
        steps, grid = columns.steps_and_grid(now)
        codes = refine_rounding(matrix[:, now], steps, grid, moments.own[now, now], rounds=settings.rounds)
        error = matrix[:, now] - steps * grid.points(codes)
        columns.codes[:, now] = codes
        matrix[:, now] -= error
        if later.start < later.stop:
            wanted = (error @ moments.own[now, later]).T
            matrix[:, later] += torch.linalg.solve(damped(moments.own[later, later], settings.ridge), wanted).T
        first = last
    columns.install()


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
