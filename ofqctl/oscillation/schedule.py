"""How strong a remedy is at each step of its phase."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Nothing at first, then a cosine from one value to another.

    Attributes:
        start: Where the cosine begins.
        end: Its value at the last step.
        delay: Share of the steps ahead of it, 0 to 1.
        steps: Optimizer steps of the phase.
    """

    start: float
    end: float
    delay: float
    steps: int

    def at(self, step: int) -> float | None:
        """The value at a step, counted from 0; None as long as there is none."""
        first = math.ceil(self.delay * self.steps)
        if step < first:
            return None
        way = min(1.0, (step - first) / max(1, self.steps - 1 - first))
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * way)) / 2.0
