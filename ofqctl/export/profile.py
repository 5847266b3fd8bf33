"""Time by kind of operator in ONNX Runtime: how much is products, and how much is around them."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from ofqctl.export.runtime import open_session

_END = "_kernel_time"  # suffix of the names of the profiler's events
_PRODUCTS = ("MatMul", "Gemm", "Conv", "QGemm", "QLinearMatMul", "FusedMatMul", "QAttention", "Attention")
_FLOAT = ("Gelu", "Softmax", "LayerNorm", "Erf", "Tanh", "Sigmoid", "Relu")
KINDS = ("products", "norms, softmax and activations", "everything between")


def kernel_times(
    model: bytes | Path, images: NDArray[Any], threads: int, passes: int
) -> Iterator[tuple[str, str, float]]:
    """The name, the type and the seconds of every node that ran, in all passes.

    Args:
        model: Path of an ONNX file, or its content.
        images: A batch in the form that the file takes.
        threads: Number of threads that one operator may use.
        passes: Number of passes.
    """
    with TemporaryDirectory() as folder:
        session = open_session(model, threads, profile=Path(folder) / "profile")
        (port,) = session.get_inputs()
        for _ in range(passes):
            session.run(None, {port.name: images})
        events = json.loads(Path(session.end_profiling()).read_text())
    for event in events:
        if event["name"].endswith(_END):
            yield event["name"].removesuffix(_END), event["args"]["op_name"], 1e-6 * event["dur"]


def seconds_by_operator(path: Path, images: NDArray[Any], threads: int, passes: int) -> dict[str, float]:
    """Mean seconds of one pass by type of operator, the most first; arguments as for ``kernel_times``."""
    times: dict[str, float] = {}
    for _, operator, seconds in kernel_times(path, images, threads, passes):
        times[operator] = times.get(operator, 0.0) + seconds / passes
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def by_kind(seconds: dict[str, float]) -> dict[str, float]:
    """The same, summed to three kinds."""
    summed = dict.fromkeys(KINDS, 0.0)
    for operator, spent in seconds.items():
        if any(word in operator for word in _PRODUCTS):
            summed[KINDS[0]] += spent
        elif any(word in operator for word in _FLOAT):
            summed[KINDS[1]] += spent
        else:
            summed[KINDS[2]] += spent
    return summed
