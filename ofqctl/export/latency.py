"""Measure how long each product takes in ONNX Runtime on this machine."""

import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from ofqctl.export.lowering import lower
from ofqctl.export.marking import marked
from ofqctl.export.runtime import open_session
from ofqctl.export.tracing import trace

_WARM_UP = 3
_END = "_kernel_time"  # suffix of the node names in the profiler's events


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
    with TemporaryDirectory() as folder:
        session = open_session(content, 1, profile=Path(folder) / "profile")
        (port,) = session.get_inputs()
        for _ in range(_WARM_UP + passes):
            session.run(None, {port.name: noise})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        name = event["name"].removesuffix(_END)
        if name in sites.products and name != event["name"]:
            times.setdefault(name, []).append(1e-6 * event["dur"])
    return {name: statistics.median(durations[_WARM_UP:]) for name, durations in times.items()}
