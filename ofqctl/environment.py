"""What libraries must find when they are loaded; set on import of this package, before any of them.

What the user has set is left alone. Processes that this one starts inherit them.
"""

import os

from ofqctl.postponed import postpone

# Libraries that report on their use, through the network and in files in the home directory, unless told not to.
_PRIVATE = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

# The profiler, which `bench step` measures memory with, logs its starts and stops.
_SILENT = {"KINETO_LOG_LEVEL": "99"}

# OpenMP's threads, which torch computes with, wait for each other dozens of times in a forward pass. By default they
# compute in a loop meanwhile: beside another busy process, they take the time from the very thread they wait for.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
_OWN_WAITING = ("GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # the user's choice in other words, of GNU's and Intel's OpenMP


def prepare() -> None:
    """Switch off reports on the use of libraries and the profiler's log, let waiting threads sleep, postpone more."""
    waiting = {} if any(name in os.environ for name in _OWN_WAITING) else _WAITING
    for name, value in (_PRIVATE | _SILENT | waiting).items():
        os.environ.setdefault(name, value)
    postpone()
