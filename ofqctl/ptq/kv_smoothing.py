"""Smoothing of keys and values: give the channels of a head alike sizes, exactly (Yue et al., 2024, arXiv 2402.12065).

The static part of WKVQuant's two-dimensional quantization. Where all channels of keys or values share a grid, the
largest one decides its step. The mean of each channel is taken off, and it is divided by a part of its spread, which
queries and the layer behind the values take over. All of it is folded into the projections, so that the float model
computes the same and nothing is added to what runs. It takes seconds, ahead of calibration, and is for keys and values
of fewer bits than the rest (``attention.kv_bits``).

With ``r`` the standard deviation of a channel: keys become ``(k - c) / s`` and queries ``q s``, with ``s = r(k)^share /
r(q)^(1 - share)``; the term ``q c`` is the same for all keys, and the softmax drops it. Values become ``(v - t) / s``
with ``s = r(v)^share / w^(1 - share)``, ``w`` being the largest weight of the channel in the layer behind, whose
weights are multiplied by ``s`` and whose bias takes up ``t``, as the rows of the softmax output sum to 1 (not quite,
once they are quantized). Within a head, ``s`` has a geometric mean of 1.

The paper learns ``c`` and ``s`` and quantizes keys and values alone, so that queries can take over all of ``s``. Here
they have a grid of their own, and ``share: 0.5`` makes both sides alike; ``share: 1`` is the paper's. Middle and width
of the range in place of mean and standard deviation are worse, because a few tokens decide them. A layer without a bias
has no shift. What the paper has for generated text, its past-only quantization, has no counterpart in a vision
transformer; its reconstruction is ``ahead`` of ``reconstruct``.

ViT-Tiny at W8A8 with keys and values of 3 bits, one step each but rows of queries and keys, 32 images: divergence on
160 others 0.50 without, 0.44 with ``share: 0.5``, 0.36 with 1, and 0.34 with ``rotation``. With weights and queries of
4 bits as well, and steps for each head, it gains nothing (1.56 and 1.67).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.hooks import attached
from ofqctl.ptq.heads import SIDES, Basis, Side, change_heads, heads_of, takes_origin
from ofqctl.ptq.task import Task
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

_SMALLEST = 1e-3  # smallest spread of a channel that is used, relative to the mean spread


class KVSmoothing(Frozen):
    """Smooth the channels of keys and values; runs before calibration, wherever it stands in the list.

    Attributes:
        share: Exponent of the part of a spread that queries, or the layer behind the values, take over.
        shift: Whether the mean of each channel is taken off.
    """

    share: float = Field(default=0.5, gt=0.0, le=1.0)
    shift: bool = True


@PTQ_STAGES.register("kv_smoothing", KVSmoothing, traits=["prepares"])
def smooth(task: Task, settings: KVSmoothing) -> None:
    """Smooth the keys and values of every attention block that allows it, and say in notes which do not."""
    task.progress("smooth keys and values", 0, None)
    blocks = {n: m for n, m in task.model.named_modules() if n in task.plan.modules and heads_of(m)}
    spreads = _spreads(task, {name: attention.qkv for name, attention in blocks.items()})

    def basis(side: Side, name: str, heads: int, width: int) -> Basis:
        attention: Any = blocks[name]
        mean, spread = (t.view(3, heads, width) for t in spreads[name])
        own, query = spread[SIDES.index(side) + 1], spread[0]
        weights = attention.proj.weight.detach().abs().amax(dim=0).cpu().double().view(heads, width)
        other = query if side == "keys" else weights
        logs = settings.share * _usable(own).log() - (1.0 - settings.share) * _usable(other).log()
        scale = (logs - logs.mean(dim=1, keepdim=True)).exp()
        origin = mean[SIDES.index(side) + 1] if settings.shift and takes_origin(attention, side) else None
        return Basis(torch.diag_embed(1.0 / scale), origin)

    task.figures["kv_smoothing"] = {s: change_heads(task, "kv_smoothing", s, partial(basis, s)) for s in SIDES}


def _usable(spread: Tensor) -> Tensor:
    return spread.clamp(min=_SMALLEST * float(spread.mean()) or 1.0)


def _spreads(task: Task, layers: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each output channel over all tokens of the calibration images, (C,) each."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            rows = output.flatten(0, -2).cpu().double()
            sums[name] = sums.get(name, 0.0) + torch.stack([rows.sum(dim=0), rows.square().sum(dim=0)])
            counts[name] = counts.get(name, 0) + len(rows)

        return hook

    with attached(layer.register_forward_hook(note(name)) for name, layer in layers.items()), torch.no_grad():
        for batch in task.images:
            task.model(batch)
    means = {name: total / counts[name] for name, total in sums.items()}
    return {name: (mean, (square - mean.square()).clamp(min=0.0).sqrt()) for name, (mean, square) in means.items()}
