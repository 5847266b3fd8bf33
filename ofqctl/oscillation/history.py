"""Figures of every weight from the first optimizer step to the newest, in a table of bounded size."""

from collections.abc import Mapping

import torch
from torch import Tensor

ROWS = 256  # at most
FIGURES = ("step", "oscillating", "flips")


class History:
    """A table with a row every so many steps: one row a step at first, every other one dropped whenever it is full.

    The rows follow from the number of steps alone, so that an interrupted training records the same ones.

    Attributes:
        steps: Optimizer steps of the rows, counted from 1; ascending, evenly spaced.
        rows: Of each, (parts of weights, 3): mean step of the grid, share of oscillating weights, flips since the
            start; float64.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[Tensor] = []

    def due(self, step: int) -> bool:
        """Whether the table takes a row of this step."""
        return step % self._stride == 0

    def add(self, step: int, figures: Tensor) -> None:
        """Append the row of a step that is due."""
        self.steps.append(step)
        self.rows.append(figures)
        if len(self.steps) > ROWS:
            wider = 2 * self._stride
            self.rows = [row for row, at in zip(self.rows, self.steps, strict=True) if at % wider == 0]
            self.steps = [at for at in self.steps if at % wider == 0]

    def state(self) -> dict[str, Tensor]:
        """``history_steps``, (rows,), and ``history``, (rows, parts, 3)."""
        if not self.rows:
            return {"history_steps": torch.zeros(0, dtype=torch.int64), "history": torch.zeros(0, 0, len(FIGURES))}
        return {"history_steps": torch.tensor(self.steps), "history": torch.stack(self.rows).cpu()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave; a state without a table starts a new one."""
        self.steps = state["history_steps"].tolist() if "history_steps" in state else []
        self.rows = list(state["history"].unbind()) if self.steps else []

    @property
    def _stride(self) -> int:
        return self.steps[1] - self.steps[0] if len(self.steps) > 1 else 1
