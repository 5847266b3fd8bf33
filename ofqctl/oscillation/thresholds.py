"""The distance of latent weights to the thresholds at which their codes change."""

from torch import Tensor

from ofqctl.grids import Encoded


def distance_to_threshold(latent: Tensor, encoded: Encoded) -> Tensor:
    """Distance of each weight to the nearest rounding threshold, in units of codes.

    It is measured between continuous codes (`ofqctl.grids.Encoded.position`), where thresholds are at ``code + 1/2``
    for every code except the highest, whatever the points are. For a weight outside of the grid it is the distance to
    the outermost threshold.

    Args:
        latent: Latent weights, any shape.
        encoded: Their codes, grid steps and grid.

    Returns:
        Distances in the shape of ``latent``, >= 0.
    """
    codes, position = encoded.grid.range, encoded.position(latent)
    nearest = position.floor().clamp_(codes.low, codes.high - 1).add_(0.5)
    return nearest.sub_(position).abs_()
