"""Train the demo's float model on digits: the median time of an epoch of 22 steps, and of a step.

``python epochs.py --threads 2 --waiting active --busy``
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_STEPS = 22  # of an epoch
_LOOPS = """\
import os
for _ in range(os.cpu_count() - 1):
    if not os.fork():
        break
parent = os.getppid()
while os.getppid() == parent:
    pass
"""  # one for each core, as long as who started them lives
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """Within the block a loop computes on every core, in a session of its own, which the system gives its own share."""
    loops = subprocess.Popen([sys.executable, "-c", _LOOPS], start_new_session=True) if wanted else None
    try:
        yield
    finally:
        if loops is not None:
            loops.kill()
            loops.wait()


def _trained(width: int, epochs: int, environment: dict[str, str]) -> list[float]:
    """The seconds of each epoch."""
    command = [sys.executable, "-m", "ofqctl", "train", "vit_tiny", "--no-pretrained", "--num-classes", "10"]
    command += ["--model-kwargs", "img_size=32", "patch_size=8", f"embed_dim={width}", "depth=4", "num_heads=4"]
    command += ["--recipe", "demo/digits_float", "--set", f"training.phases.0.epochs={epochs}"]
    command += ["--data", "digits", "--val-data", "digits", "--json"]
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run([*command, "--output", folder], env=environment, stdout=subprocess.PIPE, check=False)
    if ended.returncode:
        sys.exit(f"train: ended with {ended.returncode}")
    return [epoch["seconds"] for epoch in json.loads(ended.stdout)["training"]["epochs"]]


def main() -> None:
    """Train, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="number of threads; the program's own choice by default")
    parser.add_argument("--waiting", choices=("active", "passive"), default="passive")
    parser.add_argument("--busy", action="store_true", help="beside a loop on every core")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that what was started ends, too
    environment = {name: value for name, value in os.environ.items() if name not in _THREADS}
    environment["OMP_WAIT_POLICY"] = asked.waiting.upper()
    if asked.threads:
        environment["OMP_NUM_THREADS"] = str(asked.threads)
    with _busy(asked.busy):
        seconds = statistics.median(_trained(asked.width, asked.epochs, environment))
    print(json.dumps({"figures": {"epoch": seconds, "step": seconds / _STEPS}, "versions": {}}))


if __name__ == "__main__":
    main()
