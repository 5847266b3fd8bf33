"""GPTAQ: rounding column by column towards the float model's own output (Li et al., ICML 2025, arXiv 2504.02692).

Each layer's weights are rounded one input after the other, and those that are left make up for what was rounded, as in
GPTQ. They also make up for the layers ahead: the output that they aim at is the one on the inputs of the float model,
not on those that the quantized layers give. It takes as long as ``erq``, a minute for a ViT-Tiny, and comes nearer to
the float model at 3 bits.

With inputs ``X`` (in, rows) as the quantized layers give them, quantized, and ``X~`` of the same tokens in the float
model: ``H = X X^T`` plus ``ridge`` times the mean of its diagonal, ``U`` the upper Cholesky factor of ``H^-1``
(``H^-1 = U^T U``), and ``P = asymmetry * triu((X~ - X) X^T U^T, 1) U``. For each column ``i``, in the order of the
diagonal of ``H``, largest first, ``e = (w_i - q_i) / U_ii`` and ``W[:, i:] -= e U[i, i:] - w_i P[i, i:]``. The factor
``asymmetry`` of 0.25 is that of the authors' code; their text has none. With 0 it is GPTQ (Frantar et al., ICLR 2023,
arXiv 2210.17323). Every layer's inputs are collected once all layers ahead are rounded, those of its block included:
with inputs that are collected once for a block it diverges.

Four things are ours. The bias is a last column of ``W``, with an input of 1, that is never rounded, so that it makes up
for what is left. Where the authors' code takes ``q_i`` in place of ``w_i`` between blocks of 128 columns, we take
``w_i`` throughout, as in the formula. Rows weigh as in ``erq`` (``weighing``; 0 is as published), because a few massive
inputs decide everything otherwise, and the ridge is that of ``erq`` (published: 0.01). Divergence of ViT-Tiny at W4A4,
32 images, 160 held out: 2.00 with ``weighing: 0``, 0.76 with 0.5, then 0.72 with ``ridge: 0.05``; there 0.84 with an
``asymmetry`` of 0.5 and 1.21 with 1, and 0.91 with 0 at a ridge of 0.01; ``erq`` has 0.77. At W3A4 1.85, ``erq`` 2.50.
"""

import torch
from pydantic import Field
from torch import Tensor

from ofqctl.convert import origin_of
from ofqctl.ptq.columns import Columns
from ofqctl.ptq.layer_inputs import Layer, Moments, both_inputs, damped, every_layer, moments_of
from ofqctl.ptq.task import Task
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

_BLOCK = 128  # columns after which the changes of all later ones are made up for at once


class GPTAQ(Frozen):
    """Round weights column by column, towards the output that each layer has in the float model.

    Attributes:
        ridge: Strength of the ridge, relative to the mean square of an input.
        asymmetry: Share of the difference between the inputs of the float model and the layer's own that the columns
            make up for; 0 is GPTQ.
        weighing: Exponent ``p``: the error on an input is weighted by its mean square to the power of ``-p``; 0 weights
            all inputs equally.
    """

    ridge: float = Field(default=0.05, gt=0.0)
    asymmetry: float = Field(default=0.25, ge=0.0, le=1.0)
    weighing: float = Field(default=0.5, ge=0.0, le=1.0)


@PTQ_STAGES.register("gptaq", GPTAQ)
def round_columns(task: Task, settings: GPTAQ) -> None:
    """Round the weights of every Linear and convolution, in the order of their calls."""
    for piece, name, layer in every_layer(task, "gptaq"):
        original = piece.original.get_submodule(origin_of(name))
        round_layer(layer, moments_of(both_inputs(piece, layer, original), settings.weighing), settings)


def round_layer(layer: Layer, moments: Moments, settings: GPTAQ) -> None:
    """Round the weights of one layer; its bias makes up for what is left.

    Args:
        layer: The layer, changed in place.
        moments: Those of its inputs, a last one of 1 for the bias included.
        settings: Settings of the stage.
    """
    columns = Columns(layer)
    order = torch.arange(len(moments.own))
    order[: columns.inputs] = moments.own.diagonal()[: columns.inputs].argsort(descending=True, stable=True)
    own, apart = (m[order][:, order] for m in (moments.own, moments.cross - moments.own))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(own, settings.ridge)))
    upper = torch.linalg.cholesky(inverse, upper=True)
    towards = settings.asymmetry * (apart @ upper.T).triu(1) @ upper
    matrix = columns.matrix[:, order]
    for first in range(0, columns.inputs, _BLOCK):
        block = range(first, min(first + _BLOCK, columns.inputs))
        errors, weights = _round_block(columns, matrix, order, block, upper, towards)
        rest, rows = slice(block.stop, None), slice(block.start, block.stop)
        matrix[:, rest] -= errors @ upper[rows, rest] - weights @ towards[rows, rest]
    columns.matrix[:, order] = matrix
    columns.install()


def _round_block(
    columns: Columns, matrix: Tensor, order: Tensor, block: range, upper: Tensor, towards: Tensor
) -> tuple[Tensor, Tensor]:
    """Round the columns of a block, and change those of the same block that follow.

    Returns:
        The error of each column over its entry of ``upper``, and the column ahead of rounding, (out, block) each.
    """
    errors, weights = (torch.empty_like(matrix[:, block.start : block.stop]) for _ in range(2))
    for number, i in enumerate(block):
        weight = matrix[:, i].clone()
        steps, grid = columns.steps_and_grid(order[i : i + 1])
        codes = grid.nearest(weight[:, None] / steps)
        error = (weight - (steps * grid.points(codes))[:, 0]) / upper[i, i]
        own = slice(i, block.stop)
        matrix[:, own] -= torch.outer(error, upper[i, own]) - torch.outer(weight, towards[i, own])
        columns.codes[:, order[i]] = codes[:, 0]
        errors[:, number], weights[:, number] = error, weight
    return errors, weights
