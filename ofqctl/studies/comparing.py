"""Whether one row is better than another beyond doubt, and so whether claims hold."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ofqctl.results.study import Averaged, CheckedClaim, ComparedPair, FigureKind, Verdict
from ofqctl.studies.definition import Claim
from ofqctl.studies.figures import SeededRow, difference
from ofqctl.studies.measures import OVER_IMAGES, of_machine
from ofqctl.studies.rows import is_at

Figures = Mapping[str, Mapping[str, Averaged]]
"""Figures by row and name."""

_CLEAR = 2.0  # standard errors


@dataclass(frozen=True)
class Apart:
    """How far apart two rows are: the ``difference`` of a figure, and its standard ``error``; None if not known."""

    difference: float
    error: float | None

    @property
    def is_clear(self) -> bool:
        """Whether they differ by more than two standard errors."""
        return self.error is not None and abs(self.difference) > _CLEAR * self.error


def apart(row: SeededRow, other: SeededRow, figure: str, figures: Figures, kind: FigureKind) -> Apart:
    """How far a figure of one row is above that of another: image by image where that is known, else over seeds.

    Differences to different rows are compared by their own errors. Nobody knows the error of a difference of times, or
    of memory, between machines.
    """
    mine, theirs = figures[row.name][figure], figures[other.name][figure]
    if of_machine(figure) and row.machines != other.machines:
        return Apart(mine.mean - theirs.mean, None)
    if kind.exact:
        return Apart(mine.mean - theirs.mean, 0.0)
    plain = figure.partition(" vs ")[0]
    paired = difference(row, other, plain) if plain in OVER_IMAGES and mine.against == theirs.against else None
    if paired is not None:
        return Apart(paired.mean, paired.error)
    errors = None if mine.error is None or theirs.error is None else math.hypot(mine.error, theirs.error)
    return Apart(mine.mean - theirs.mean, errors)


def checked_claim(
    claim: Claim, rows: Sequence[SeededRow], figures: Figures, kind_of: Callable[[str], FigureKind]
) -> CheckedClaim:
    """A claim, held against what was measured."""
    pairs = tuple(_pairs(claim, rows, figures, kind_of(claim.figure)))
    verdicts = {pair.verdict for pair in pairs}
    verdict: Verdict = "contradicted" if "contradicted" in verdicts else "undecided"
    if verdicts == {"holds"}:
        verdict = "holds"
    about = claim.model_dump(include={"name", "paper", "says", "figure"})
    return CheckedClaim(**about, pairs=pairs, verdict=verdict)


def _pairs(claim: Claim, rows: Sequence[SeededRow], figures: Figures, kind: FigureKind) -> Iterator[ComparedPair]:
    groups: dict[tuple[tuple[str, str], ...], dict[str, SeededRow]] = {}
    for row in rows:
        label = row.labels.get(claim.axis, "")
        if is_at(row.labels, claim.where) and label in claim.order and claim.figure in figures[row.name]:
            others = tuple((axis, own) for axis, own in row.labels.items() if axis != claim.axis)
            groups.setdefault(others, {})[label] = row
    sign = -1.0 if kind.better == "lower" else 1.0
    for group in groups.values():
        there = [group[label] for label in claim.order if label in group]
        for first, second in pairwise(there):
            found = apart(first, second, claim.figure, figures, kind)
            better: Verdict = "holds" if sign * found.difference > 0 else "contradicted"
            yield ComparedPair(
                first=first.name,
                second=second.name,
                difference=found.difference,
                error=found.error,
                verdict=better if found.is_clear else "undecided",
            )
