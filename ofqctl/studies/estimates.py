"""About how long rows take, from those that were run."""

import statistics
from collections.abc import Iterable, Iterator, Mapping

from ofqctl.studies.definition import ROW
from ofqctl.studies.ledger import Ledger
from ofqctl.studies.rows import Row
from ofqctl.studies.steps import Step


class Estimates:
    """About how long rows take, from those that were run.

    Args:
        ledger: What was run.
        rows: All rows of the study.
    """

    def __init__(self, ledger: Ledger, rows: Iterable[Row]) -> None:
        self._ledger = ledger
        self._known: dict[str, list[tuple[Mapping[str, str], float]]] = {}
        for row in rows:
            for role, step in _roles(row):
                kept = self._ledger.newest(step)
                if kept is not None and kept.record.state == "done":
                    self._known.setdefault(role, []).append((row.labels, kept.record.seconds))

    def of(self, row: Row) -> float | None:
        """Seconds of what is left of a row; None if nothing is known."""
        total, known = 0.0, False
        for role, step in _roles(row):
            kept = self._ledger.found(step)
            if kept is not None and kept.record.state == "done":
                continue
            alike = self._alike(role, row.labels)
            if alike is not None:
                total, known = total + alike, True
            elif step == row.step:
                return None if row.minutes is None else 60.0 * row.minutes
        return total if known else None

    def _alike(self, role: str, labels: Mapping[str, str]) -> float | None:
        """Median time of the rows that have most labels in common."""
        times = self._known.get(role)
        if not times:
            return None
        likeness = [sum(labels.get(axis) == label for axis, label in other.items()) for other, _ in times]
        best = max(likeness)
        return statistics.median(own for (_, own), like in zip(times, likeness, strict=True) if like == best)


def _roles(row: Row) -> Iterator[tuple[str, Step]]:
    """What each step is for."""
    named: dict[Step, str] = {step: measure for measure, step in row.measured.items() if step != row.step}
    for step in row.steps:
        yield row.labels[ROW] if step == row.step else named.get(step, step.title), step
