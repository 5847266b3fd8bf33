"""What is said about single layers, field by field, and about several together.

Every share is a number from 0 to 1.
"""

from ofqctl.oscillation import Role
from ofqctl.recipe.plan import Frozen

Quantiles = dict[str, float]
"""Values by the share of the weights, or of the channels, that is at most as large: ``0``, ``0.25``, ``0.5`` ..."""


class Codes(Frozen):
    """The codes of a layer.

    Attributes:
        lowest: Smallest code of the grid.
        counts: Weights that have each code, from the smallest code to the largest.
        entropy: Bits of information in a code, of the ``bits`` that are paid.
        unused: Dead codes: share of the pairs of a channel and a code of the grid that no weight of the channel has.
    """

    lowest: int
    counts: tuple[int, ...]
    entropy: float
    unused: float


class Histogram(Frozen):
    """Latent weights by their position among the codes: points of the grid at whole numbers, thresholds at halves.

    Attributes:
        low: Where the first bin begins; it holds everything below too.
        high: Where the last bin ends; it holds everything above too.
        counts: Weights in each of the equally wide bins.
    """

    low: float
    high: float
    counts: tuple[int, ...]


class Latents(Frozen):
    """Where the latent weights of a layer lie between the thresholds at which their codes change.

    Attributes:
        within: Share of the weights at most so many steps away from their nearest threshold.
        confident: Share of the weights farther away than the boundary range.
        clipped: Share of the weights more than half a step beyond the outermost codes.
        positions: All of them.
    """

    within: dict[str, float]
    confident: float
    clipped: float
    positions: Histogram


class Channel(Frozen):
    """One output channel (row) of a layer.

    Attributes:
        index: In the layer's weight, the rows of all heads of a merged product counted on.
        oscillating: Share of its weights that oscillate.
        frequency: Mean frequency of its weights.
    """

    index: int
    oscillating: float
    frequency: float


class Tracked(Frozen):
    """What the tracker saw of a layer.

    Attributes:
        oscillating: Share of the weights whose frequency is above the threshold.
        flips_per_step: Share of the codes that flip in a step, mean of the last 30 steps; where a tracker counted the
            flips of a fused projection together, that of the whole.
        never_flipped: Frozen codes: share of the weights whose code has never changed while it was tracked.
        frequency: Quantiles of the frequency over the weights.
        channels: Those that oscillate most, at most ``top`` of them.
    """

    oscillating: float
    flips_per_step: float
    never_flipped: float
    frequency: Quantiles
    channels: tuple[Channel, ...]


class LiveWeights(Frozen):
    """What live steps did to the weights of a layer.

    Attributes:
        flips_per_step: Share of the codes that flip in a step, mean of all steps.
        oscillations_per_step: Share of the codes that flip back in a step, mean of all steps.
        oscillating: Share of the weights whose frequency, from 0 at the first step, is above the threshold at the last.
        sign_agreement: Of all pairs of gradients of a weight at two steps in a row, neither of them 0, the share with
            the same sign; null where there was no pair.
    """

    flips_per_step: float
    oscillations_per_step: float
    oscillating: float
    sign_agreement: float | None


class Named(Frozen):
    """One quantized weight, or the query, key or value rows of a fused one.

    Attributes:
        name: Of its module.
        role: What it does in the model.
        weights: How many.
    """

    name: str
    role: Role
    weights: int

    @property
    def title(self) -> str:
        """Its name and, where several layers share that, its role."""
        fused = self.name.rpartition(".")[2] in ("qkv", "kv", "qk") and self.role != "qk"
        return f"{self.name} [{self.role}]" if fused else self.name


class Layer(Named):
    """What a file says about one layer.

    Attributes:
        shape: Of the weight or of its rows.
        bits: Paid for a code.
        method: Of its quantizer.
        step: Quantiles of the steps of its channels.
        codes: Always there.
        latents: From latent weights.
        tracked: From the tracker.
    """

    shape: tuple[int, ...]
    bits: int
    method: str
    step: Quantiles
    codes: Codes
    latents: Latents | None = None
    tracked: Tracked | None = None


class Summary(Frozen):
    """Several layers together: each figure is the mean over their weights."""

    layers: int
    weights: int
    bits: float
    entropy: float
    unused: float
    oscillating: float | None = None
    flips_per_step: float | None = None
    never_flipped: float | None = None
    confident: float | None = None
    clipped: float | None = None
    within: dict[str, float] | None = None
