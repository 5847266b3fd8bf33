"""How far each row of a study is."""

import shlex
from collections.abc import Sequence

from ofqctl.files import only_one
from ofqctl.packages import version_of
from ofqctl.results.study import RowState, RowStatus
from ofqctl.studies.estimates import Estimates
from ofqctl.studies.ledger import Ledger
from ofqctl.studies.rows import Row
from ofqctl.studies.scheduling import Outcome
from ofqctl.studies.steps import Step


class Looked:
    """Looks at rows.

    Args:
        ledger: What was run.
        estimates: About how long rows take.
        study: The study as the user named it.
        given: Options of a command that runs one row of it.
    """

    def __init__(self, ledger: Ledger, estimates: Estimates, study: str, given: Sequence[str]) -> None:
        self._ledger, self._estimates = ledger, estimates
        self._words = ["ofqctl", "study", "run", study, *given]

    def at(self, row: Row) -> RowStatus:
        """How far a row is."""
        missing = [need for need in row.step.needs if version_of(need) is None]
        states = [self._state(step) for step in row.steps]
        state: RowState = next((one for one in _WORST if one in states), "done")
        if missing and state == "missing":
            state = "left out"
        found = [one for step in row.steps if (one := self._ledger.found(step)) is not None]
        failures = [one.record.failure for one in found if one.record.failure is not None]
        reasons = [f"{', '.join(missing)}: not installed"] if missing else [failure.message for failure in failures]
        own = {row.step, *row.measured.values()}
        spent = [one.record.seconds for step in own if (one := self._ledger.newest(step)) is not None]
        place = self._ledger.newest(row.step)
        return RowStatus(
            row=row.name,
            state=state,
            failure=failures[0] if failures and state == "failed" else None,
            reason=next(iter(reasons), None) if state == "left out" else None,
            seconds=round(sum(spent), 3) if spent else None,
            estimate=None if state in ("done", "failed", "left out") else self._estimates.of(row),
            command=shlex.join([*self._words, "--only", row.name]),
            folder=None if place is None else str(place.folder),
        )

    def _state(self, step: Step) -> RowState:
        found = self._ledger.found(step)
        if found is not None and not (found.record.state == "failed" and self._ledger.rules.retry):
            return found.record.state
        place = self._ledger.place(step)
        if place.is_dir():
            with only_one(place) as lock:
                if lock is None:
                    return "running"
        others = self._ledger.others(step)
        if not others:
            return "missing"
        return "other data" if others[-1].record.data != dict(self._ledger.identities.of(step).data) else "other code"


_WORST: tuple[RowState, ...] = ("failed", "left out", "running", "missing", "other data", "other code")


def is_left(status: RowStatus) -> bool:
    """Whether there is something to run for a row."""
    return status.state not in ("done", "failed", "left out")


def estimated(states: Sequence[RowStatus]) -> float | None:
    """Estimated seconds of what is left of rows; None if nothing is known of one."""
    left = [status.estimate for status in states if is_left(status)]
    known = [one for one in left if one is not None]
    return sum(known) if len(known) == len(left) else None


def with_outcome(status: RowStatus, outcome: Outcome) -> RowStatus:
    """The same after a run, in which that became of the row."""
    return status.model_copy(
        update={"state": outcome.state, "failure": outcome.failure, "reason": outcome.reason or status.reason}
    )
