"""Figures of weights in one checkpoint: codes, grid steps, and distances of latent weights to thresholds."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from ofqctl.diagnosis.weights import AnalyzedWeight
from ofqctl.oscillation import distance_to_threshold
from ofqctl.results.layers import Codes, Histogram, Latents, Quantiles

RANGES = (0.003, 0.005, 0.007, 0.01)  # distances to a threshold, in grid steps
STEP_LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
_BINS = 160  # largest number of bins in a histogram of positions
_FINEST = 16  # largest number of bins in a grid step


def codes_of(weight: AnalyzedWeight) -> Codes:
    """Figures on the use of the codes."""
    codes = weight.encoded.grid.range
    rows = weight.rows(weight.encoded.codes).to(torch.int64).sub_(codes.low)
    levels = codes.count
    places = rows.add_(torch.arange(len(rows)).unsqueeze(1), alpha=levels)
    used = torch.bincount(places.flatten(), minlength=len(rows) * levels).view(len(rows), levels)
    counts = used.sum(0)
    shares = counts[counts > 0].double() / counts.sum()
    return Codes(
        lowest=codes.low,
        counts=tuple(counts.tolist()),
        entropy=float((-shares * shares.log2()).sum().clamp(min=0.0)),
        unused=float((used == 0).double().mean()),
    )


def latents_of(weight: AnalyzedWeight, boundary_range: float) -> Latents:
    """Figures on the positions of latent weights.

    Args:
        weight: The weight, with latent values.
        boundary_range: Largest distance to a threshold, in grid steps, at which a weight is not confident.
    """
    assert weight.latent is not None
    encoded = weight.encoded
    distance = distance_to_threshold(weight.latent, encoded)
    count = distance.numel()
    near = {limit: int((distance <= limit).count_nonzero()) / count for limit in {*RANGES, boundary_range}}
    codes, position = encoded.grid.range, encoded.position(weight.latent)
    beyond = (position < codes.low - 0.5) | (position > codes.high + 0.5)
    return Latents(
        within={f"{limit:g}": near[limit] for limit in RANGES},
        confident=1.0 - near[boundary_range],
        clipped=int(beyond.count_nonzero()) / count,
        positions=_histogram(position, codes.low, codes.high),
    )


def steps_of(weight: AnalyzedWeight) -> Quantiles:
    """Quantiles of the grid steps of the channels."""
    return quantiles(weight.encoded.step, STEP_LEVELS)


def quantiles(values: Tensor, levels: Iterable[float]) -> Quantiles:
    """Quantiles by level: for each level, the smallest value that at least this share of ``values`` does not exceed."""
    flat = values.detach().cpu().flatten().numpy()
    ranks = {level: max(0, int(np.ceil(level * flat.size)) - 1) for level in levels}
    ordered = np.partition(flat, sorted(set(ranks.values())))
    return {f"{level:g}": float(ordered[rank]) for level, rank in ranks.items()}


def _histogram(position: Tensor, lowest: int, highest: int) -> Histogram:
    """Histogram with one more step on either side of the grid; thresholds lie between bins."""
    low, high = lowest - 1.5, highest + 1.5
    steps = round(high - low)
    bins = steps * max(1, min(_FINEST, _BINS // steps))
    counts = torch.histc(position.clamp(low, high), bins, low, high)
    return Histogram(low=low, high=high, counts=tuple(int(count) for count in counts.tolist()))
