"""The strength of a remedy at each optimizer step of its phase."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from ofqctl.remedies.remedy import Remedy, RemedySettings

Shape = Literal["cosine", "linear"]


@dataclass(frozen=True)
class Schedule:
    """No value during a delay, then a way from one value to another.

    Attributes:
        start: First value after the delay.
        end: Value at the last optimizer step.
        delay: Share of the optimizer steps before the first value, 0 to 1.
        steps: Number of optimizer steps in the phase.
        shape: How the value changes on its way.
    """

    start: float
    end: float
    delay: float
    steps: int
    shape: Shape = "cosine"

    def at(self, step: int) -> float | None:
        """The value at an optimizer step, counted from 0; None during the delay."""
        first = math.ceil(self.delay * self.steps)
        if step < first:
            return None
        way = min(1.0, (step - first) / max(1, self.steps - 1 - first))
        left = 1.0 - way if self.shape == "linear" else (1.0 + math.cos(math.pi * way)) / 2.0
        return self.end + (self.start - self.end) * left


class ScheduledSettings(RemedySettings):
    """Settings of a remedy with a schedule; a subclass says what follows it.

    Attributes:
        start: First value after the delay.
        end: Value at the last optimizer step of the phase.
        delay: Share of the phase's optimizer steps before the first value.
    """

    start: float
    end: float
    delay: float = Field(default=0.25, ge=0.0, lt=1.0)

    def at_end(self) -> Self:
        """Settings that have their final value from the first optimizer step on."""
        return self.model_copy(update={"start": self.end, "delay": 0.0})

    def over(self, steps: int) -> Schedule:
        """The schedule of a phase with so many optimizer steps."""
        return Schedule(self.start, self.end, self.delay, steps)


class Scheduled(Remedy):
    """A remedy that follows a schedule, for which it counts the optimizer steps of its phase.

    Args:
        schedule: The schedule.

    Attributes:
        done: Number of optimizer steps done.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.done = 0

    @property
    def strength(self) -> float | None:
        """The value at the current optimizer step; None during the delay."""
        return self._schedule.at(self.done)

    def after_step(self) -> None:
        """Count the optimizer step."""
        self.done += 1

    def state_dict(self) -> dict[str, Tensor]:
        """``step``: the number of optimizer steps done."""
        return {"step": torch.tensor(self.done)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the state."""
        self.done = int(state["step"])
