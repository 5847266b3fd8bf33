"""Where a latent weight lies between the thresholds at which its code changes."""

from torch import Tensor

from ofqctl.grids import Encoded


def distance_to_threshold(latent: Tensor, encoded: Encoded) -> Tensor:
    """Distance of each weight to its nearest rounding threshold, in steps of its grid.

    That is where the weight lies among the codes (`ofqctl.grids.Grid.position`): thresholds are at ``code + 1/2`` for
    every code but the highest, whatever the points are. A weight beyond the grid is therefore as far away as it is from
    the last threshold inside it.

    Args:
        latent: Float weights, any shape.
        encoded: Their codes, steps and grid.

    Returns:
        Like ``latent``, >= 0.
    """
    codes, position = encoded.grid.range, encoded.grid.position(latent / encoded.step)
    nearest = position.floor().clamp_(codes.low, codes.high - 1).add_(0.5)
    return nearest.sub_(position).abs_()
