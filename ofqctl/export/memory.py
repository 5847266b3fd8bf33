"""Measure the memory to load and run a file, in a separate process that imports only the runtime."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

_STATUS = Path("/proc/self/status")  # Linux only; its ru_maxrss is inherited from the parent process


def peak_bytes(path: str, *, batch: int, threads: int) -> int:
    """Peak memory in bytes that loading a file and two passes add to a new process.

    Args:
        path: Path of the file.
        batch: Number of images in one pass.
        threads: Number of threads that one operator may use.
    """
    typed = [sys.executable, __file__, path, str(batch), str(threads)]
    done = subprocess.run(typed, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout))


def _main(path: str, batch: int, threads: int) -> int:
    peak_at_start = _peak()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    image = session.get_inputs()[0]
    shape = [batch, *image.shape[1:]]
    images = np.zeros(shape, np.uint8 if image.type == "tensor(uint8)" else np.float32)
    for _ in range(2):
        session.run(None, {image.name: images})
    return _peak() - peak_at_start


def _peak() -> int:
    """Peak memory of this process, in bytes."""
    if _STATUS.exists():
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
