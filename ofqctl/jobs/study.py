"""Run studies, say how far they are, and report their figures."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from ofqctl.documents import checked, parse_json, read_text
from ofqctl.errors import StudyError
from ofqctl.files import output_file, replaced_file
from ofqctl.progress import Progress, silent
from ofqctl.results.study import (
    ShippedStudy,
    StudyListResult,
    StudyReport,
    StudyRunResult,
    StudyStatus,
)
from ofqctl.studies import catalogue
from ofqctl.studies.content import Digests
from ofqctl.studies.definition import MOST_ROWS, Study
from ofqctl.studies.estimates import Estimates
from ofqctl.studies.ledger import Ledger, Rules
from ofqctl.studies.places import models_of, places_of
from ofqctl.studies.records import Folder, Opened
from ofqctl.studies.reporting import check, report
from ofqctl.studies.rows import Row, rows_of
from ofqctl.studies.scheduling import Scheduler
from ofqctl.studies.states import Looked, estimated, with_outcome
from ofqctl.studies.steps import PYTHON, Data, Identities, Step

RUNS = Path("runs") / "studies"


@dataclass(frozen=True)
class StudyRequest:
    """A request that concerns a study.

    Attributes:
        study: Name of a shipped study, path of a study's file, or of the folder that one was run in.
        folder: The folder for what is run; None takes that of the study, or `RUNS` with its name.
        data: Where data lies, by name.
        models: Models, by name, in place of the study's.
        only: Pattern of the names of the rows; None takes all.
        rules: What counts as done, and what is run.
    """

    study: str
    folder: Path | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    only: str | None = None
    rules: Rules = field(default_factory=Rules)


@dataclass(frozen=True)
class RunStudyRequest(StudyRequest):
    """A request to run a study.

    Attributes:
        jobs: Number of steps at once.
        shard: Which part of how many the rows are, from 1.
        dry: Whether nothing is run.
        most_rows: Largest number of rows.
        seconds: Time after which no row begins; None for no limit.
        check: Called with the words of each command of the program that will run; raises an error if it is none.
    """

    jobs: int = 1
    shard: tuple[int, int] = (1, 1)
    dry: bool = False
    most_rows: int = MOST_ROWS
    seconds: float | None = None
    check: Callable[[Sequence[str]], None] | None = None


@dataclass(frozen=True)
class ReportRequest(StudyRequest):
    """A request for a study's figures.

    Attributes:
        html: Page to write.
        markdown: File to write.
    """

    html: Path | None = None
    markdown: Path | None = None


@dataclass(frozen=True)
class _Work:
    """A study with its folder, data and rows."""

    study: Study
    folder: Folder
    places: dict[str, str]
    models: dict[str, str]
    cwd: Path
    every: list[Row]
    rows: list[Row]
    digests: Digests
    ledger: Ledger


def list_studies() -> StudyListResult:
    """The studies that come with the program."""
    return StudyListResult(studies=tuple(_shipped(name) for name in catalogue.names()))


def _shipped(name: str) -> ShippedStudy:
    study = catalogue.find(name).study
    rows = rows_of(study)
    minutes = [row.minutes for row in rows]
    known = [one for one in minutes if one is not None]
    return ShippedStudy(
        name=name,
        description=study.description,
        rows=len(rows),
        data=tuple(own for own, place in study.data.items() if place is None),
        models={own: model for own, model in study.models.items() if isinstance(model, str)},
        minutes=sum(known) if len(known) == len(minutes) else None,
    )


def run_study(request: RunStudyRequest, progress: Progress = silent) -> StudyRunResult:
    """Run what is missing of a study; a row that fails does not stop the others.

    Raises:
        StudyError: The study is invalid, its data has changed, it has too many rows, or the folder is another study's.
        KeyboardInterrupt: The user ended it, or SIGTERM, whose number it has; what has ended is kept.
    """
    began = time.monotonic()
    work = _open(request, shard=request.shard)
    _check_commands(work, request.check)
    _check_places(work)
    estimates = Estimates(work.ledger, work.every)
    _check_count(work, estimates, request.most_rows)
    work.ledger.check_data(work.every)
    looked = Looked(work.ledger, estimates, request.study, given(request))
    if request.dry:
        states = [looked.at(row) for row in work.rows]
    else:
        opened = Opened(study=work.study, places=work.places, models=work.models, cwd=str(work.cwd))
        work.folder.begin(opened, work.digests.known)
        scheduler = Scheduler(
            work.ledger,
            estimates,
            work.places,
            work.cwd,
            jobs=request.jobs,
            seconds=request.seconds,
            progress=progress,
        )
        with _terminated_as_interrupted():
            outcomes = scheduler.run(work.rows)
        states = [with_outcome(looked.at(row), outcomes[row.name]) for row in work.rows]
    return StudyRunResult(
        study=work.study.name,
        folder=str(work.folder.path),
        rows=tuple(states),
        estimate=estimated(states),
        seconds=round(time.monotonic() - began, 3),
        dry=request.dry,
    )


def study_status(request: StudyRequest) -> StudyStatus:
    """How far a study is.

    Raises:
        StudyError: The study is invalid, or the folder is another study's.
    """
    work = _open(request, lenient=True)
    looked = Looked(work.ledger, Estimates(work.ledger, work.every), request.study, given(request))
    states = tuple(looked.at(row) for row in work.rows)
    return StudyStatus(
        study=work.study.name,
        folder=str(work.folder.path),
        rows=states,
        estimate=estimated(states),
    )


def study_report(request: ReportRequest) -> StudyReport:
    """The figures of a study, from what was run of it or from a report that was kept as JSON.

    Raises:
        OfqctlError: The study is invalid, a file is damaged, or the folder is another study's.
    """
    with output_file(request.html), output_file(request.markdown):
        kept = Path(request.study)
        if kept.suffix == ".json":
            _check_finished(request)
            made = checked(StudyReport, parse_json(read_text(kept), str(kept)), str(kept))
        else:
            work = _open(request, lenient=True)
            if not work.folder.is_there():
                raise StudyError(f"{work.folder.path}: no study was run there", hint="`ofqctl study run` runs one")
            made = report(work.study, work.rows, work.ledger)
        if request.html is not None:
            from ofqctl.reports.study import study_page

            with replaced_file(request.html) as fresh:
                fresh.write_text(study_page(made), encoding="utf-8", errors="backslashreplace")
        if request.markdown is not None:
            from ofqctl.reports.study_markdown import study_markdown

            with replaced_file(request.markdown) as fresh:
                fresh.write_text(study_markdown(made), encoding="utf-8")
    return made


def _check_finished(request: ReportRequest) -> None:
    """Refuse options that choose what a report is made of, for one that is made already."""
    given = {"--output": request.folder, "--data": request.data, "--model": request.models, "--only": request.only}
    if asked := [name for name, value in given.items() if value]:
        raise StudyError(
            f"{', '.join(asked)}: {request.study} is a report already, and is shown as it is",
            hint="the name of the study, or its folder, makes another",
        )


def _open(request: StudyRequest, shard: tuple[int, int] = (1, 1), *, lenient: bool = False) -> _Work:
    found = catalogue.find(request.study)
    folder = Folder((request.folder or found.folder or RUNS / found.study.name).absolute())  # commands run elsewhere
    folder.check(found.study)
    before = folder.opened() if folder.is_there() else None
    models = models_of(found.study, before, request.models)
    study = found.study.model_copy(update={"models": found.study.models | models})
    every = rows_of(study)
    check(study, every)
    places = places_of(study, found.cwd, before, request.data)
    rows = every if request.only is None else _called(request.only, every)
    if not rows:
        hint = f"such as '{every[0].name}', or '*{every[0].name.split()[-1]}*'"
        raise StudyError(f"--only {request.only}: no row is called so", hint=hint)
    number, count = shard
    digests = Digests(folder.digests())
    ledger = Ledger(folder, Identities(places, found.cwd, digests, lenient=lenient), request.rules)
    return _Work(study, folder, places, models, found.cwd, every, rows[number - 1 :: count], digests, ledger)


def _called(pattern: str, rows: list[Row]) -> list[Row]:
    """The row of this very name, or else those whose names fit."""
    return [row for row in rows if row.name == pattern] or [row for row in rows if fnmatchcase(row.name, pattern)]


def _check_count(work: _Work, estimates: Estimates, most: int) -> None:
    if len(work.rows) <= most:
        return
    known = [one for row in work.rows if (one := estimates.of(row)) is not None]
    takes = f"; about {sum(known) / len(known) * len(work.rows) / 3600:.1f} hours" if known else ""
    raise StudyError(
        f"study '{work.study.name}': {len(work.rows)} rows, and at most {most} are run at once{takes}",
        hint="--only or --shard takes a part of them, --most-rows allows more",
    )


def _check_commands(work: _Work, check: Callable[[Sequence[str]], None] | None) -> None:
    for step in dict.fromkeys(step for row in work.rows for step in row.steps):
        if step.command == PYTHON:
            _check_script(step.option(PYTHON), work.cwd)
        elif check is not None:
            check([_shown_word(piece) for piece in step.all_words])


def _check_script(script: str, cwd: Path) -> None:
    if not (script.startswith("-") or (cwd / script).is_file()):
        raise StudyError(f"`python {script}`: no file '{script}' in {cwd}", hint="`python FILE ...` runs a script")


def _shown_word(word: tuple[object, ...]) -> str:
    return "".join(piece if isinstance(piece, str) else "x" for piece in word)


def _check_places(work: _Work) -> None:
    named = dict.fromkeys(name for row in work.rows for step in row.steps for name in _data_of(step))
    missing = [name for name in named if name not in work.places]
    if missing:
        names = " ".join(f"{name}=PATH" for name in missing)
        raise StudyError(f"study '{work.study.name}': where its data lies must be said", hint=f"--data {names}")


def _data_of(step: Step) -> Iterator[str]:
    return (piece.name for word in step.words for piece in word if isinstance(piece, Data))


def given(request: StudyRequest) -> list[str]:
    """Options of a command that runs rows of the same study in the same way."""
    words = [] if request.folder is None else ["--output", str(request.folder)]
    rules = request.rules
    flags = {"--mix-data": rules.mix_data, "--mix-code": rules.mix_code, "--retry": rules.retry}
    words += [flag for flag, is_set in flags.items() if is_set]
    for option, values in (("--data", request.data), ("--model", request.models)):
        words += [word for name, value in values.items() for word in (option, f"{name}={value}")]
    return words


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that running steps are ended as well."""

    def interrupt(number: int, _frame: object) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
