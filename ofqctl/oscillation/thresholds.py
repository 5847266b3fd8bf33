"""Where a latent weight lies between the thresholds at which its code changes."""

from torch import Tensor

from ofqctl.grids import Encoded


def distance_to_threshold(latent: Tensor, encoded: Encoded) -> Tensor:
    """Distance of each weight to its nearest rounding threshold, in steps.

    The position of a weight is ``latent / step - offset``; thresholds lie at ``code + 1/2`` for every code but the
    highest. A weight beyond the grid is therefore as far away as it is from the last threshold inside it.

    Args:
        latent: Float weights, any shape.
        encoded: Their codes, steps and grid.

    Returns:
        Like ``latent``, >= 0.
    """
    position = (latent / encoded.step).sub_(encoded.offset)
    nearest = position.floor().clamp_(encoded.grid.low, encoded.grid.high - 1).add_(0.5)
    return position.sub_(nearest).abs_()
