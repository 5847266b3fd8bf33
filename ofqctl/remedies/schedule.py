"""The strength of a remedy at each optimizer step of its phase."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """No value during a delay, then a cosine from one value to another.

    Attributes:
        start: First value of the cosine.
        end: Value at the last optimizer step.
        delay: Share of the optimizer steps before the cosine starts, 0 to 1.
        steps: Number of optimizer steps in the phase.
    """

    start: float
    end: float
    delay: float
    steps: int

    def at(self, step: int) -> float | None:
        """The value at an optimizer step, counted from 0; None during the delay."""
        first = math.ceil(self.delay * self.steps)
        if step < first:
            return None
        way = min(1.0, (step - first) / max(1, self.steps - 1 - first))
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * way)) / 2.0
