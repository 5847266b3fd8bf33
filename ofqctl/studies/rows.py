"""The rows of a study: every point of its matrix, as steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from ofqctl.errors import StudyError
from ofqctl.studies.definition import ROW, SEED, RowDefinition, Study, Where
from ofqctl.studies.measures import PAIRED, measuring
from ofqctl.studies.steps import Reader, Step

_MOST_POINTS = 100_000  # of its matrix, ahead of what is excluded


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        labels: Labels by axis, in the order of the matrix; ``row`` is first.
        step: The step of its command.
        measured: The step that prints what a measure reads, by measure.
        minutes: About how long it takes, if the study says.
    """

    labels: Mapping[str, str]
    step: Step
    measured: Mapping[str, Step]
    minutes: float | None

    @property
    def name(self) -> str:
        """Its name."""
        return named(self.labels)

    @property
    def steps(self) -> tuple[Step, ...]:
        """Everything that it needs, in order."""
        every = [*self.step.closure(), *(one for step in self.measured.values() for one in step.closure())]
        return tuple(dict.fromkeys(every))


def named(labels: Mapping[str, str]) -> str:
    """The name of a row with these labels."""
    return " ".join([labels[ROW], *(f"{axis}={label}" for axis, label in labels.items() if axis != ROW)])


def without_seed(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels of a row whatever its seed."""
    return {axis: label for axis, label in labels.items() if axis != SEED}


def is_at(labels: Mapping[str, str], where: Where) -> bool:
    """Whether a row with these labels is one of those that ``where`` says."""
    return all(labels.get(axis) in allowed for axis, allowed in where.items())


def rows_of(study: Study) -> list[Row]:
    """All rows of a study, in order.

    Raises:
        StudyError: There are none, too many to list, or a text of the study is no command.
    """
    points = sum(prod(map(len, study.axes_of(defined).values())) for defined in study.rows.values())
    if points > _MOST_POINTS:
        hint = "fewer labels, or a study for each part"
        raise StudyError(f"study '{study.name}': {points} points; a study has at most {_MOST_POINTS}", hint=hint)
    rows = [row for name, defined in study.rows.items() for row in _expanded(study, name, defined)]
    if not rows:
        raise StudyError(
            f"study '{study.name}': its matrix expands to no row", hint="an axis is empty, or `exclude` has all"
        )
    return rows


def _expanded(study: Study, name: str, defined: RowDefinition) -> Iterator[Row]:
    axes = study.axes_of(defined)
    for point in product(*(values.items() for values in axes.values())):
        labels = {ROW: name} | {axis: label for axis, (label, _) in zip(axes, point, strict=True)}
        if any(is_at(labels, excluded) for excluded in study.exclude):
            continue
        reader = Reader(study, {axis: text for axis, (_, text) in zip(axes, point, strict=True)})
        step = reader.step(defined.command, defined.launcher, defined.needs)
        measured = {
            measure: measuring(reader, step, measure, options)
            for measure, options in study.measured(defined).items()
            if measure != PAIRED
        }
        yield Row(labels, step, measured, defined.minutes)
