"""Measure how long an optimizer step takes, with a model that is thrown away."""

import statistics
import time
from itertools import islice, pairwise

from ofqctl.devices import suited_threads
from ofqctl.randomness import random_state, restore_random
from ofqctl.training.engine import Engine

_STEPS = 8  # of which the second half counts: what is compiled or read for the first time is so in the first


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
    with suited_threads(engine.model):
        times += [time.perf_counter() for _ in islice(engine.steps(), _STEPS)]
    restore_random(before)
    seconds = [later - earlier for earlier, later in pairwise(times)]
    return statistics.median(seconds[len(seconds) // 2 :])
