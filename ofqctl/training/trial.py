"""Measure how long an optimizer step takes, with a model that is thrown away."""

import signal
import statistics
import time
from itertools import pairwise

from ofqctl.randomness import random_state, restore_random
from ofqctl.training.engine import Engine, Hooks, Row
from ofqctl.training.interruption import Interrupted

_STEPS = 8  # of which the second half counts: what is compiled or read for the first time is so in the first


class _EnoughError(Exception):
    """As many steps as wanted were taken."""


def seconds_per_step(engine: Engine) -> float:
    """Take a few optimizer steps, with all that belongs to them, and return their median seconds.

    Random generators are afterwards as they were.

    Args:
        engine: An engine of a copy of the model, which has trained nothing yet; it is of no use afterwards.

    Raises:
        ModelError: The loss is not finite.
    """
    before = random_state()
    times = [time.perf_counter()]

    def step(_row: Row) -> None:
        times.append(time.perf_counter())
        if len(times) > _STEPS:
            raise _EnoughError

    engine.hooks = Hooks(step=step)
    try:
        engine.fit()
    except _EnoughError:
        pass
    except Interrupted as interruption:
        signal.raise_signal(interruption.signum)  # there is no state that one could go on with
        raise
    finally:
        restore_random(before)
    seconds = [later - earlier for earlier, later in pairwise(times)]
    return statistics.median(seconds[len(seconds) // 2 :])
