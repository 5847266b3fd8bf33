"""Measure how long each product takes in ONNX Runtime on this machine."""

import statistics

import numpy as np
from torch import nn

from ofqctl.export.lowering import lower
from ofqctl.export.marking import marked
from ofqctl.export.profile import kernel_times
from ofqctl.export.tracing import trace

_WARM_UP = 3


def product_seconds(model: nn.Module, size: tuple[int, int, int], *, passes: int = 25) -> dict[str, float]:
    """Export a model and measure every product that computes on integers, with one image and one thread.

    Args:
        model: The quantized and calibrated model, in evaluation mode, on the CPU.
        size: Size of one image, (3, H, W).
        passes: Number of timed passes.

    Returns:
        Median seconds of each product, by name.
    """
    with marked(model, "onnxruntime") as sites:
        traced = trace(model, size, batch=1, pixels=False, sites=sites)
    content = lower(traced, sites).model.SerializeToString()
    noise = np.random.default_rng(0).standard_normal((1, *size), dtype=np.float32)
    times: dict[str, list[float]] = {}
    for name, _, seconds in kernel_times(content, noise, 1, _WARM_UP + passes):
        if name in sites.products:
            times.setdefault(name, []).append(seconds)
    return {name: statistics.median(durations[_WARM_UP:]) for name, durations in times.items()}
