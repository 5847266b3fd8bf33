"""Damaged files through the program: each is refused with a clear error, or gives what the undamaged one gives.

``python -m tests.fuzz.harness --count 10000`` (``make fuzz``) draws as many damages from a seed, sends each through one
command, and prints what came of them. Files that carry a digest, of themselves or in another file, are damaged as they
are; with ``re-signed`` damages the digest is dropped or made right again, as in files of earlier versions and of faulty
programs: these may compute something else, but never crash, hang or give figures that are no numbers.
"""

import argparse
import contextlib
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .subjects import KINDS, Ended, Subjects, Try, cleared, copied, figures_of, run

LIMIT_SECONDS = 30
LIMIT_BYTES = 6 * 2**30  # beside what is taken at the start


class HungError(BaseException):
    """A command took longer than the limit."""


@dataclass
class Report:
    """What came of the damages.

    Attributes:
        outcomes: By damage and outcome, how many.
        faults: A line for each that is neither refused nor right.
        seconds: Time taken.
    """

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> Counter[str]:
        """How many, by outcome."""
        return sum(self.outcomes.values(), Counter())

    def __str__(self) -> str:
        columns = ("refused", "same", "told", "other", "fault")
        lines = [f"{'damage':<44}" + "".join(f"{column:>9}" for column in columns)]
        total = self.total
        for what, found in sorted(self.outcomes.items()):
            lines.append(f"{what:<44}" + "".join(f"{found[column]:>9}" for column in columns))
        lines.append(f"{'all':<44}" + "".join(f"{total[column]:>9}" for column in columns))
        return "\n".join([*lines, f"{sum(total.values())} damages in {self.seconds:.0f} s", *self.faults])


def fuzz(
    count: int, seed: int, kind: str = "", *, progress: Callable[[int, Report], None] = lambda _done, _report: None
) -> Report:
    """Draw ``count`` damages, of all kinds or of one, and send each through one command."""
    report, started = Report(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, _limited():
        subjects = Subjects(Path(folder) / "subjects")
        tries, draw = [one for one in subjects.tries() if kind in ("", one.kind)], random.Random(seed)
        for done in range(count):
            chosen = draw.choice(tries)
            outcome, told = _one(subjects, chosen, random.Random(f"{seed} {done}"), Path(folder) / "damaged")
            report.outcomes.setdefault(chosen.what, Counter())[outcome] += 1
            if outcome == "fault":
                report.faults.append(f"{done}: {chosen.what}: {told}")
            report.seconds = time.monotonic() - started
            progress(done + 1, report)
    return report


def _one(subjects: Subjects, chosen: Try, draw: random.Random, folder: Path) -> tuple[str, str]:
    folder.mkdir(exist_ok=True)
    place = folder / chosen.source.name
    command = draw.choice(chosen.commands)
    expected = subjects.expected(chosen.source, place, command) if chosen.signed else None
    folder.mkdir(exist_ok=True)
    copied(chosen.source, place)
    told = "?"
    try:
        told = chosen.how(place / chosen.file if chosen.file else place, draw)
        typed = command(place)
        told = f"{told}; {' '.join(map(str, typed[:2]))}"
        signal.alarm(LIMIT_SECONDS)
        ended = run(*typed)
        outcome, reason = _judge(ended, place, expected, chosen)
    except HungError:
        outcome, reason = "fault", f"took more than {LIMIT_SECONDS} s"
    except BaseException as error:  # noqa: BLE001  whatever leaves the program is a fault
        outcome, reason = "fault", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        cleared(folder)
    return outcome, f"{told}: {reason}"


def _judge(ended: Ended, place: Path, expected: Any, chosen: Try) -> tuple[str, str]:
    """The outcome, and why."""
    if ended.code not in (0, 1, 2) or "Traceback" in ended.err or "this is a bug" in ended.err:
        return "fault", f"exit {ended.code}: {' / '.join(ended.err.strip().splitlines()[-3:])[-300:]}"
    if "\x1b]" in ended.out + ended.err:
        return "fault", "an escape sequence was printed"
    if ended.code:
        if not any(word in ended.err for word in ("error: ", "Error", "Usage")):
            return "fault", f"exit {ended.code} without an error: {ended.err[-200:]}"
        return "refused", ""
    figures = figures_of(ended, place)
    if _lost(figures):
        return "fault", "a figure that is no number"
    if not chosen.signed:
        return "other", ""
    if figures == expected:
        return "same", ""
    if chosen.file == "results.json" and "figures are left out" in ended.err:
        return "told", ""
    return "fault", "another result, without a word"


def _lost(figures: Any) -> bool:
    """Whether a figure that every result has is missing."""
    values = figures[0]
    if not isinstance(values, dict):
        return False
    images = values["images"] if isinstance(values.get("images"), list) else []
    ranked = [label["probability"] for image in images for label in image["top"]]
    return None in ranked or any(key in values and values[key] is None for key in ("top1", "top5", "loss"))


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Limits of memory, and of the time of each command."""

    def stop(*_: object) -> None:
        raise HungError

    before, former = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + LIMIT_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGALRM, former)


def _main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", choices=KINDS, help="damages of one kind")
    asked = parser.parse_args()

    told_of = [0]

    def progress(done: int, report: Report) -> None:
        for fault in report.faults[told_of[0] :]:
            print(fault, file=sys.stderr, flush=True)
        told_of[0] = len(report.faults)
        if done % 250 == 0:
            print(
                f"{done} of {asked.count}, {len(report.faults)} faults, {report.seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    report = fuzz(asked.count, asked.seed, asked.only, progress=progress)
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(_main())
