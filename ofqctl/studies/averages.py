"""Means, spreads and errors over seeds and images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ofqctl.results.study import Averaged

Table = NDArray[np.float64]
"""A value for each seed and image, (seeds, images)."""


def averaged(values: Sequence[float], table: Table | None = None) -> Averaged:
    """A figure over seeds.

    Args:
        values: Its value for each seed.
        table: Its value for each seed and image, where it is a mean over images.
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    error = None if spread is None else spread / len(values) ** 0.5
    if table is not None and table.shape[1] > 1:
        error = crossed_error(table)
    return Averaged(mean=float(np.mean(values)), spread=spread, error=error, values=tuple(map(float, values)))


def crossed_error(table: Table) -> float:
    """Standard error of the mean of a table of seeds and images, both of which are samples.

    With one seed that over images. With several, from the mean squares of the analysis of variance of two crossed
    random factors without replication: the variance of the mean is (MS_seeds + MS_images - MS_rest) / (seeds * images),
    and never less than MS_rest / (seeds * images), which is what it is if seeds and images do not matter.

    Args:
        table: Values, (seeds, images), with two images or more.
    """
    seeds, images = table.shape
    mean = table.mean()
    by_image = seeds * float(((table.mean(axis=0) - mean) ** 2).sum()) / (images - 1)
    if seeds == 1:
        return float((by_image / images) ** 0.5)
    by_seed = images * float(((table.mean(axis=1) - mean) ** 2).sum()) / (seeds - 1)
    fitted = table.mean(axis=0, keepdims=True) + table.mean(axis=1, keepdims=True) - mean
    rest = float(((table - fitted) ** 2).sum()) / ((seeds - 1) * (images - 1))
    return float((max(by_seed + by_image - rest, rest) / (seeds * images)) ** 0.5)


def front(points: Sequence[tuple[float, float]], *, x_higher: bool, y_higher: bool) -> list[bool]:
    """Which points no other beats: none is at least as good in both figures, and better in one.

    Args:
        points: The two figures of each.
        x_higher: Whether larger first figures are better; else smaller ones.
        y_higher: The same for the second.
    """
    gains = np.array(points, dtype=np.float64).reshape(-1, 2) * [1 if x_higher else -1, 1 if y_higher else -1]
    beaten = [bool(((gains >= one).all(axis=1) & (gains > one).any(axis=1)).any()) for one in gains]
    return [not is_beaten for is_beaten in beaten]
