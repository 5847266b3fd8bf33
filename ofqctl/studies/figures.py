"""The figures of rows, read from what their steps printed, and taken together over seeds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ofqctl.errors import StudyError
from ofqctl.results.study import Averaged, StudyRow
from ofqctl.studies.averages import Table, averaged
from ofqctl.studies.definition import ROW, SEED, Study
from ofqctl.studies.ledger import Ledger
from ofqctl.studies.measures import ACCURACY, MEASURES, OVER_IMAGES, PAIRED, of_machine, own_figures
from ofqctl.studies.predictions import Predictions, read_predictions
from ofqctl.studies.records import DOCUMENT, Record
from ofqctl.studies.rows import Row, named, without_seed
from ofqctl.studies.steps import PREDICTIONS


@dataclass(frozen=True)
class MeasuredRow:
    """A row of one seed that is done.

    Attributes:
        row: The row.
        figures: Its figures.
        predictions: What its model said of each image, if that was measured.
        records: Records of all of its steps.
        machine: Where it ran itself.
    """

    row: Row
    figures: dict[str, float]
    predictions: Predictions | None
    records: tuple[Record, ...]
    machine: str = ""


def measured_row(study: Study, row: Row, ledger: Ledger) -> MeasuredRow | None:
    """The figures of a row; None if a step of it is not done.

    Raises:
        OfqctlError: A file of it is damaged.
    """
    kept = {step: ledger.newest(step) for step in row.steps}
    if any(one is None or one.record.state != "done" for one in kept.values()):
        return None
    there = {step: one for step, one in kept.items() if one is not None}
    own = there[row.step]
    try:
        figures = own_figures(own.document(), study.figures)
    except StudyError as error:
        raise StudyError(f"{own.folder / DOCUMENT}: {error.message}") from error
    for name, step in row.measured.items():
        try:
            figures = MEASURES[name].read(there[step].document(), own.record) | figures
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise StudyError(f"{there[step].folder}: its document lacks what '{name}' reads: {error}") from error
    judged = there[row.measured[ACCURACY]] if ACCURACY in row.measured else own
    predictions = read_predictions(judged.folder / PREDICTIONS)
    records = tuple(one.record for one in there.values())
    return MeasuredRow(row, figures, predictions, records, str(own.record.machine))


@dataclass
class SeededRow:
    """A row over its seeds.

    Attributes:
        labels: Its labels, without that of the seed.
        wanted: Number of seeds that there are to be.
        seeds: What was measured, by seed; by an empty name if the row has none.
    """

    labels: dict[str, str]
    wanted: int = 0
    seeds: dict[str, MeasuredRow] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name."""
        return named(self.labels)

    @property
    def machines(self) -> set[str]:
        """The machines that its seeds were measured on."""
        return {one.machine for one in self.seeds.values()}

    def table(self, figure: str, seeds: Iterable[str] | None = None) -> Table | None:
        """Values of a figure for each seed and image; None if they are not known for all, or the images differ."""
        chosen = [self.seeds[seed].predictions for seed in (self.seeds if seeds is None else seeds)]
        known = [one for one in chosen if one is not None and figure in one.values]
        if len(known) < len(chosen) or len({one.images for one in known}) != 1:
            return None
        return np.stack([one.values[figure] for one in known])

    def images(self) -> set[tuple[str, ...]]:
        """The images that it was measured on; several if not all seeds were measured on the same."""
        return {one.predictions.images for one in self.seeds.values() if one.predictions is not None}


def seeded(rows: Sequence[Row], measured: Iterable[MeasuredRow | None]) -> list[SeededRow]:
    """Rows over their seeds, in order; those of which no seed is done as well."""
    found: dict[str, SeededRow] = {}
    for row, one in zip(rows, measured, strict=True):
        labels = without_seed(row.labels)
        group = found.setdefault(named(labels), SeededRow(labels))
        group.wanted += 1
        if one is not None:
            group.seeds[row.labels.get(SEED, "")] = one
    return list(found.values())


def difference(row: SeededRow, other: SeededRow, figure: str) -> Averaged | None:
    """By how much a figure of one row is above that of another, image by image and seed by seed.

    Seeds that both have are compared with each other. If there is none, or just one of several, the mean of the row
    with fewer seeds is compared with every seed of the other one; if both have as many, these are taken in order. So
    the other way round, all of it is the same with the other sign. None if what is known is not of the same images.
    """
    if len(row.images() | other.images()) != 1:
        return None
    common = [seed for seed in row.seeds if seed in other.seeds]
    seeds = common if len(common) > 1 else None
    mine, theirs = row.table(figure, seeds), other.table(figure, seeds)
    if mine is None or theirs is None:
        return None
    if len(mine) < len(theirs):
        mine = mine.mean(axis=0, keepdims=True)
    elif len(mine) > len(theirs):
        theirs = theirs.mean(axis=0, keepdims=True)
    table = mine - theirs
    return averaged(table.mean(axis=1).tolist(), table)


def figures_of(study: Study, row: SeededRow, every: Sequence[SeededRow]) -> dict[str, Averaged]:
    """All figures of a row over its seeds; no times and no memory if these were measured on several machines."""
    every_name = dict.fromkeys(name for one in row.seeds.values() for name in one.figures)
    names = [name for name in every_name if not (of_machine(name) and len(row.machines) > 1)]
    found = {}
    for name in names:
        values = [one.figures[name] for one in row.seeds.values() if name in one.figures]
        found[name] = averaged(values, row.table(name) if name in OVER_IMAGES else None)
    for reference in references(study, row.labels[ROW]):
        axis, _, label = reference.partition("=")
        other = _reference(every, row.labels | {axis: label})
        if other is None or other is row:
            continue
        for name in OVER_IMAGES:
            apart = difference(row, other, name)
            if apart is not None:
                found[f"{name} vs {label}"] = apart.model_copy(update={"against": other.name})
    return found


def references(study: Study, kind: str) -> list[str]:
    """What rows of a kind are compared with, each ``axis=label``.

    Raises:
        StudyError: A reference is no label of an axis.
    """
    texts = (study.measured(study.rows[kind]).get(PAIRED) or "").split()
    for text in texts:
        axis, _, label = text.partition("=")
        if label not in study.axes.get(axis, ()):
            known = ", ".join(f"{name}={min(labels)}" for name, labels in study.axes.items() if labels)
            raise StudyError(f"measure.{PAIRED}: '{text}' is no label of an axis; such as {known}")
    return texts


def _reference(every: Sequence[SeededRow], labels: dict[str, str]) -> SeededRow | None:
    """The row with these labels, as far as rows of its kind have such axes."""
    for row in every:
        if row.seeds and all(labels.get(axis) == label for axis, label in row.labels.items()):
            return row
    return None


def as_result(row: SeededRow, figures: dict[str, Averaged]) -> StudyRow:
    """A row for a report."""
    return StudyRow(row=row.name, labels=row.labels, seeds=tuple(row.seeds), wanted=row.wanted, figures=figures)
