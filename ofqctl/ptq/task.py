"""The task that every stage of post-training quantization works on."""

import time
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ofqctl.errors import RecipeError
from ofqctl.progress import Progress
from ofqctl.ptq.units import Batches
from ofqctl.recipe import Plan


class Clock:
    """How much of a time budget is left.

    Args:
        budget: Seconds, > 0; None sets no limit.
    """

    def __init__(self, budget: float | None = None) -> None:
        self._began = time.monotonic()
        self._end = None if budget is None else self._began + budget

    @property
    def spent(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float | None:
        """Seconds left, 0 once the budget is used up; None if there is no limit."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        """Whether the budget is used up, so that no new work should start."""
        return self.left == 0.0

    def part(self, share: float) -> "Clock":
        """A budget of a share of what is left of this one."""
        return Clock(None if self.left is None else share * self.left)


def check_time_budget(seconds: float | None) -> None:
    """Check a time budget that was asked for.

    Raises:
        RecipeError: It is not more than 0.
    """
    if seconds is not None and seconds <= 0:
        raise RecipeError(f"--time-budget: {seconds:g} seconds; more than 0 are needed")


@dataclass
class Task:
    """A calibrated model whose output the stages bring closer to the float model's.

    Attributes:
        model: The quantized and calibrated model, in evaluation mode; stages change it in place.
        original: The float model, in evaluation mode.
        plan: The plan that the model was quantized by, or, for a stage that prepares, is going to be.
        images: Normalized calibration images, (B, 3, H, W) each.
        progress: Called to report progress.
        clock: Time budget; a stage starts no new work once it is used up.
        seed: Seed of everything random.
        fitted: Number of images, counted from the first, that an earlier stage was fitted to.
        notes: What could not be done as asked, one sentence each.
        figures: What the stages measured, by stage name.
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
