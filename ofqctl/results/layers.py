"""Results for single layers and for groups of layers.

Every share is a number from 0 to 1.
"""

from typing import Literal

from ofqctl.results.document import Part

Role = Literal["q", "k", "v", "qk", "proj", "fc1", "fc2", "patch", "head", "other"]
"""Projections of attention (``qk`` is the merged query-key product), the two layers of an MLP, the patch embedding,
the classifiers, and anything else."""

Quantiles = dict[str, float]
"""Values by the share of the weights, or of the channels, that is at most as large: ``0``, ``0.25``, ``0.5`` ..."""


class Codes(Part):
    """Use of the codes of a layer.

    Attributes:
        lowest: Smallest code of the grid.
        counts: Number of weights with each code, from the smallest code to the largest.
        entropy: Information in a code in bits, at most ``bits``.
        unused: Share of dead codes: codes of the grid that no weight of a channel has, mean over the channels.
    """

    lowest: int
    counts: tuple[int, ...]
    entropy: float
    unused: float


class Histogram(Part):
    """Histogram of latent weights by continuous code: grid points are at integers, thresholds halfway between.

    Attributes:
        low: Start of the first bin, which also counts everything below.
        high: End of the last bin, which also counts everything above.
        counts: Number of weights in each of the equally wide bins.
    """

    low: float
    high: float
    counts: tuple[int, ...]


class Latents(Part):
    """Positions of the latent weights of a layer relative to the thresholds at which their codes change.

    Attributes:
        within: Share of the weights within each distance (in grid steps) of their nearest threshold.
        confident: Share of the weights farther from every threshold than the boundary range.
        clipped: Share of the weights more than half a step beyond the outermost codes.
        positions: Histogram of all positions.
    """

    within: dict[str, float]
    confident: float
    clipped: float
    positions: Histogram


class Channel(Part):
    """One output channel (row) of a layer.

    Attributes:
        index: Row of the layer's weight; rows of all heads of a merged product are counted consecutively.
        oscillating: Share of its weights that oscillate.
        frequency: Mean frequency of its weights.
    """

    index: int
    oscillating: float
    frequency: float


class Tracked(Part):
    """Results of the tracker for a layer.

    Attributes:
        oscillating: Share of the weights whose frequency is above the threshold.
        flips_per_step: Share of the codes that flip in an optimizer step, mean of the last 30; for the whole fused
            projection if the tracker counted its flips together.
        never_flipped: Share of the weights whose code never changed while it was tracked.
        moved: Share of the weights whose code is not the one at the start; null if the start is unknown.
        signs_moved: Share of the weights whose quantized value has another sign than at the start; 0 is one.
        magnitudes_moved: Share of the weights whose quantized value has another magnitude, in grid steps.
        frequency: Quantiles of the frequency over the weights.
        channels: The channels that oscillate most, at most ``top``.
    """

    oscillating: float
    flips_per_step: float
    never_flipped: float
    moved: float | None = None
    signs_moved: float | None = None
    magnitudes_moved: float | None = None
    frequency: Quantiles
    channels: tuple[Channel, ...]


class LiveWeights(Part):
    """Results of live steps for the weights of a layer.

    Attributes:
        flips_per_step: Share of the codes that flip in an optimizer step, mean over all steps.
        oscillations_per_step: Share of the codes that flip back in an optimizer step, mean over all steps.
        oscillating: Share of the weights whose frequency, starting from 0, is above the threshold at the last step.
        sign_agreement: Share of the pairs of nonzero gradients of a weight at consecutive steps that have the same
            sign; null if there was no pair.
    """

    flips_per_step: float
    oscillations_per_step: float
    oscillating: float
    sign_agreement: float | None


class Named(Part):
    """One quantized weight, or the query, key or value rows of a fused one.

    Attributes:
        name: Name of its module.
        role: Its role in the model.
        weights: Number of weights.
    """

    name: str
    role: Role
    weights: int

    @property
    def title(self) -> str:
        """Its name and, if several layers share the name, its role."""
        fused = self.name.rpartition(".")[2] in ("qkv", "kv", "qk") and self.role != "qk"
        return f"{self.name} [{self.role}]" if fused else self.name


class AnalyzedLayer(Named):
    """Results for one layer of a file.

    Attributes:
        shape: Shape of the weight, or of its rows.
        bits: Bits that a code takes.
        method: Method of its quantizer.
        step: Quantiles of the grid steps of its channels.
        codes: Use of its codes.
        latents: Results from latent weights, or null.
        tracked: Results of the tracker, or null.
    """

    shape: tuple[int, ...]
    bits: int
    method: str
    step: Quantiles
    codes: Codes
    latents: Latents | None = None
    tracked: Tracked | None = None


class Summary(Part):
    """A group of layers; each figure is the mean over their weights."""

    layers: int
    weights: int
    bits: float
    entropy: float
    unused: float
    oscillating: float | None = None
    flips_per_step: float | None = None
    never_flipped: float | None = None
    moved: float | None = None
    signs_moved: float | None = None
    magnitudes_moved: float | None = None
    confident: float | None = None
    clipped: float | None = None
    within: dict[str, float] | None = None
