"""The report of a study, from what was run of it."""

from collections.abc import Iterable, Sequence
from functools import partial

from ofqctl.errors import StudyError, did_you_mean
from ofqctl.packages import version_of
from ofqctl.results.study import FailedRow, FigureKind, Provenance, StudyReport
from ofqctl.studies.comparing import checked_claim
from ofqctl.studies.definition import Study
from ofqctl.studies.figures import SeededRow, as_result, figures_of, measured_row, references, seeded
from ofqctl.studies.ledger import Ledger
from ofqctl.studies.measures import FIGURES, PAIRED, kind_of
from ofqctl.studies.records import Record
from ofqctl.studies.rows import Row
from ofqctl.studies.tables import placed_rows, plot_of, table_of


def report(study: Study, rows: Sequence[Row], ledger: Ledger) -> StudyReport:
    """The figures of a study, its tables and plots, what failed, and where all of it comes from.

    Raises:
        OfqctlError: A file is damaged, or a table names figures that there are not.
    """
    measured = [measured_row(study, row, ledger) for row in rows]
    groups = [group for group in seeded(rows, measured) if group.seeds]
    figures = {group.name: figures_of(study, group, groups) for group in groups}
    known = {name for every in figures.values() for name in every}
    kinds = {name: found for name in sorted(known) if (found := kind_of(name, study.figures)) is not None}
    kind = partial(_kind, study)
    tables = tuple(table_of(table, groups, figures, kind) for table in study.tables)
    plots = tuple(plot_of(plot, groups, figures, kind) for plot in study.plots)
    records = [record for one in measured if one is not None for record in one.records]
    return StudyReport(
        study=study.name,
        description=study.description,
        commands={name: row.command for name, row in study.rows.items()},
        kinds=kinds,
        rows=tuple(as_result(group, figures[group.name]) for group in groups),
        failures=tuple(_absent(row, ledger) for row, one in zip(rows, measured, strict=True) if one is None),
        tables=tables,
        plots=plots,
        claims=tuple(checked_claim(claim, groups, figures, kind) for claim in study.claims),
        provenance=_provenance(records),
        notes=(*_notes(records), *_left_out(groups)),
    )


def check(study: Study, rows: Sequence[Row]) -> None:
    """Check what can be known of a report before anything runs: the figures that it names, and the cells of its tables.

    Raises:
        StudyError: There is no such figure or reference, or several rows fall on one cell.
    """
    compared = {text.partition("=")[2] for name in study.rows for text in references(study, name)}
    named = [figure for table in study.tables for figure in table.figures]
    named += [figure for plot in study.plots for figure in (plot.x, plot.y)]
    for name in (*named, *(claim.figure for claim in study.claims)):
        _kind(study, name)
        other = name.partition(" vs ")[2]
        if other and name not in study.figures and other not in compared:
            hint = f"`measure.{PAIRED}` names what is compared: {', '.join(sorted(compared)) or 'nothing yet'}"
            raise StudyError(f"study '{study.name}': figure '{name}': nothing is compared with '{other}'", hint=hint)
    groups = seeded(rows, [None] * len(rows))
    for table in study.tables:
        placed_rows(table, groups)


def _kind(study: Study, name: str) -> FigureKind:
    found = kind_of(name, study.figures)
    if found is None:
        known = (*FIGURES, *study.figures)
        hint = did_you_mean(name, known) or f"there are {', '.join(known)}, and those that `figures:` says"
        raise StudyError(f"study '{study.name}': no figure is called '{name}'", hint=hint)
    return found


def _absent(row: Row, ledger: Ledger) -> FailedRow:
    for step in row.steps:
        kept = ledger.newest(step)
        if kept is not None and kept.record.failure is not None:
            failure = kept.record.failure
            if kept.record.state == "left out":
                return FailedRow(row=row.name, failure=None, reason=f"left out: {failure.message}")
            return FailedRow(row=row.name, failure=failure, reason=f"{step.command}: {failure.message}")
    missing = [need for need in row.step.needs if version_of(need) is None]
    reason = f"left out: {', '.join(missing)} not installed" if missing else "not run yet"
    return FailedRow(row=row.name, failure=None, reason=reason)


def _provenance(records: Sequence[Record]) -> Provenance:
    names = dict.fromkeys(name for record in records for name in record.versions)
    data = dict.fromkeys(name for record in records for name in record.data)
    times = sorted(record.started for record in records)
    return Provenance(
        commits=_distinct(record.commit for record in records),
        codes=_distinct(record.code for record in records),
        machines=_distinct(str(record.machine) for record in records),
        versions={name: _distinct(record.versions.get(name) for record in records) for name in names},
        data={name: _distinct(record.data.get(name) for record in records) for name in sorted(data)},
        first=times[0] if times else None,
        last=times[-1] if times else None,
        beside=max((record.beside for record in records), default=0),
    )


def _distinct(values: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value is not None))


def _left_out(groups: Sequence[SeededRow]) -> Iterable[str]:
    """That there are no times of rows over several machines."""
    names = [f"'{group.name}'" for group in groups if len(group.machines) > 1]
    if names:
        yield f"seeds of {', '.join(names)} were measured on different machines: their times and memory are left out"


def _notes(records: Sequence[Record]) -> Iterable[str]:
    """What should be known of figures that are not of one kind."""
    where = _provenance(records)
    if len(where.codes) > 1:
        yield f"the rows were measured with {len(where.codes)} versions of the program: {', '.join(where.commits)}"
    if len(where.machines) > 1:
        yield f"the rows were measured on {len(where.machines)} machines: {'; '.join(where.machines)}"
    for name, digests in where.data.items():
        if len(digests) > 1:
            yield f"data '{name}' had {len(digests)} contents: {', '.join(digests)}"
