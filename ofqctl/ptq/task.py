"""What every step of post-training quantization works on."""

import time
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ofqctl.progress import Progress
from ofqctl.ptq.units import Batches
from ofqctl.recipe import Plan


class Clock:
    """How much of a time budget is left.

    Args:
        budget: In seconds, > 0; None has no end.
    """

    def __init__(self, budget: float | None = None) -> None:
        self._end = None if budget is None else time.monotonic() + budget

    @property
    def left(self) -> float | None:
        """Seconds until the end, 0 once it has passed; None without one."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether nothing more should be begun."""
        return self.left == 0.0


@dataclass
class Task:
    """A calibrated model that is to come nearer to the float one.

    Attributes:
        model: Quantized and calibrated, in evaluation mode; the steps change it in place.
        original: The float model, in evaluation mode.
        plan: What is quantized.
        images: Normalized calibration images, (B, 3, H, W) each.
        progress: Told what goes on.
        clock: When to stop.
        seed: Decides every draw.
        fitted: To how many of the images, from the first on, a step was fitted.
        notes: What could not be done as asked, a sentence each.
        figures: What the steps measured, by their names.
    """

    model: nn.Module
    original: nn.Module
    plan: Plan
    images: Batches
    progress: Progress
    clock: Clock = field(default_factory=Clock)
    seed: int = 0
    fitted: int = 0
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
