"""What was run in a study's folder, and what of it counts now."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ofqctl.errors import StudyError
from ofqctl.studies.records import Folder, Kept, read_record
from ofqctl.studies.rows import Row
from ofqctl.studies.steps import Identities, Step


@dataclass(frozen=True)
class Rules:
    """What counts as done, and what is run.

    Attributes:
        mix_data: Whether rows measured on other contents of data count as done.
        mix_code: Whether rows measured with another version of the program count as done.
        retry: Whether steps that failed run again.
    """

    mix_data: bool = False
    mix_code: bool = False
    retry: bool = False


class Ledger:
    """What was run in a study's folder.

    Args:
        folder: The folder.
        identities: Identities of steps, for the data that there is now.
        rules: What counts as done.
    """

    def __init__(self, folder: Folder, identities: Identities, rules: Rules) -> None:
        self.folder, self.identities, self.rules = folder, identities, rules
        self._places = folder.steps()
        self._before: dict[str, list[Kept]] = {}
        for kept in folder.kept():
            self._before.setdefault(kept.record.loose, []).append(kept)
        self._failed = [kept for same in self._before.values() for kept in same if kept.record.state != "done"]

    def place(self, step: Step) -> Path:
        """The folder of a step that is run now."""
        key = self.identities.of(step).key
        return self._places.get(key) or self.folder.of(step.title, key)

    def exact(self, step: Step) -> Kept | None:
        """The step as it would be run now."""
        place = self.place(step)
        record = read_record(place)
        return None if record is None else Kept(place, record)

    def others(self, step: Step) -> list[Kept]:
        """The same step on other contents of data or by other code, done, the newest last."""
        identity = self.identities.of(step)
        before = self._before.get(identity.loose, ())
        return [kept for kept in before if kept.record.key != identity.key and kept.record.state == "done"]

    def found(self, step: Step) -> Kept | None:
        """The step that counts as done, or that failed."""
        exact = self.exact(step)
        if exact is not None:
            return exact
        identity = self.identities.of(step)
        allowed = [
            kept
            for kept in self.others(step)
            if (self.rules.mix_data or kept.record.data == dict(identity.data))
            and (self.rules.mix_code or kept.record.code == identity.code)
        ]
        return allowed[-1] if allowed else None

    def newest(self, step: Step) -> Kept | None:
        """The step as it would be run now, or else as it was run last, whatever data and code were."""
        return self.exact(step) or next(reversed(self.others(step)), None)

    def runs_again(self, kept: Kept) -> bool:
        """Whether a step that had failed or was left out when this ledger was opened, and was not run since, is run."""
        return kept in self._failed and (self.rules.retry or kept.record.state == "left out")

    def check_data(self, rows: Iterable[Row]) -> None:
        """Check that rows that were measured before were measured on the data that there is now.

        Args:
            rows: All rows of the study, since a report has all of them.

        Raises:
            StudyError: They were not, and that is not allowed.
        """
        if self.rules.mix_data:
            return
        changed = Counter(change for row in rows for change in self._changes(row))
        for (name, before, there), count in changed.items():
            rows_were = "1 row was" if count == 1 else f"{count} rows were"
            raise StudyError(
                f"data '{name}': {rows_were} measured on other contents (digest {before}) than there are now ({there})",
                hint="--mix-data keeps those rows as they are and goes on; --output names a folder for a new start",
            )

    def _changes(self, row: Row) -> set[tuple[str, str, str]]:
        """Data that a row was measured on: name, digest then, and the digest now, which differs."""
        changed = set()
        for step in {row.step, *row.measured.values()}:
            data = self.identities.of(step).data
            kept = self.newest(step)
            for name, digest in () if kept is None else kept.record.data.items():
                if data.get(name, digest) != digest:
                    changed.add((name, digest, data[name]))
        return changed
