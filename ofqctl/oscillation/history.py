"""Figures of every weight over the whole training, in a table of bounded size."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ofqctl.errors import ArtifactError

ROWS = 256  # largest number of rows
FIGURES = ("step", "oscillating", "flips")


class HistoryTable:
    """A table with evenly spaced rows, at first one for each optimizer step; when full, every other row is dropped.

    Which rows exist depends only on the number of optimizer steps, so that an interrupted training records the same
    ones.

    Attributes:
        steps: Numbers of the rows' optimizer steps, counted from 1, ascending, evenly spaced.
        rows: For each row, float64 (parts of weights, 3): mean grid step, share of oscillating weights, flips since the
            start.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[Tensor] = []

    def due(self, step: int) -> bool:
        """Whether the table needs a row for this optimizer step."""
        return step % self._stride == 0

    def add(self, step: int, figures: Tensor) -> None:
        """Append the row of an optimizer step that is due."""
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
        """Restore what :meth:`state` returned; a state without a table starts a new one.

        Raises:
            ArtifactError: The rows are not evenly spaced.
        """
        steps = state["history_steps"].tolist() if "history_steps" in state else []
        rows = list(state["history"].unbind()) if steps else []
        gaps = {after - before for before, after in pairwise(steps)}
        if len(rows) != len(steps) or len(gaps) > 1 or min(gaps | set(steps[:1]), default=1) < 1:
            raise ArtifactError("oscillation: the steps of the tracker's history are not evenly spaced")
        self.steps, self.rows = steps, rows

    @property
    def _stride(self) -> int:
        return self.steps[1] - self.steps[0] if len(self.steps) > 1 else 1
