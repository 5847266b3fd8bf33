"""Summarize groups of layers."""

from collections.abc import Iterable, Sequence
from typing import Any

from ofqctl.oscillation import MOVED
from ofqctl.results.layers import AnalyzedLayer, Summary


def summary_of(layers: Sequence[AnalyzedLayer]) -> Summary:
    """Means over all weights of ``layers``; a figure that not all of them have is None."""
    weights = sum(layer.weights for layer in layers)

    def mean(values: Iterable[float]) -> float:
        return sum(value * layer.weights for value, layer in zip(values, layers, strict=True)) / weights

    latents = [layer.latents for layer in layers if layer.latents is not None]
    tracked = [layer.tracked for layer in layers if layer.tracked is not None]
    figures: dict[str, Any] = {
        "layers": len(layers),
        "weights": weights,
        "bits": mean(layer.bits for layer in layers),
        "entropy": mean(layer.codes.entropy for layer in layers),
        "unused": mean(layer.codes.unused for layer in layers),
    }
    if latents:
        figures |= {key: mean(getattr(one, key) for one in latents) for key in ("confident", "clipped")}
        figures["within"] = {key: mean(one.within[key] for one in latents) for key in latents[0].within}
    if tracked:
        keys = ["oscillating", "flips_per_step", "never_flipped"]
        keys += MOVED if all(one.moved is not None for one in tracked) else ()
        figures |= {key: mean(getattr(one, key) for one in tracked) for key in keys}
    return Summary.model_validate(figures)
