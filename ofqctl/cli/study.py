"""``ofqctl study ls|run|status|report``."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.commands import command
from ofqctl.cli.groups import flag, group, option
from ofqctl.cli.output import Aside, Table, duration
from ofqctl.cli.printing import say
from ofqctl.errors import StudyError

if TYPE_CHECKING:
    from ofqctl.results.study import RowStatus, StudyListResult, StudyReport, StudyRunResult, StudyStatus
    from ofqctl.studies.ledger import Rules

Named = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="Name of a shipped study (see `ofqctl study ls`), a YAML file, or the folder that a study was run in.",
        show_default=False,
    ),
]

app = typer.Typer(no_args_is_help=True, help="Run, follow and report studies: many runs, compared.")


@group("Study")
class _StudyOptions:
    data: list[str] | None = option(
        "NAME=DATA ...", "Where the study's data lies, several after one flag: calib=imagenet/train val=imagenet/val."
    )
    model: list[str] | None = option("NAME=MODEL ...", "Models in place of the study's, several after one flag.")
    only: str | None = option("PATTERN", "Rows whose names fit, such as '*bits=W4A4*'.")
    output: Path | None = option("DIR", "Folder of what is run; by default runs/studies/NAME.")


@group("Rows")
class _RuleOptions:
    mix_data: bool = flag("Keep rows that were measured on other contents of the data.", "--mix-data")
    mix_code: bool = flag("Keep rows that were measured with another version of the program.", "--mix-code")
    retry: bool = flag("Run again what has failed.", "--retry")

    def rules(self) -> "Rules":
        """What counts as done."""
        from ofqctl.studies.ledger import Rules

        return Rules(self.mix_data, self.mix_code, self.retry)


@group("Execution")
class _Execution:
    jobs: int = option("N", "Rows to run at once; times are then measured beside others.", default=1, min=1)
    shard: str | None = option("I/N", "Part I of N of the rows, for one of N machines that share the folder.")
    time_budget: float | None = option("SECONDS", "Time after which no row begins; those left out are listed.", min=0)
    most_rows: int = option("N", "Largest number of rows to run.", default=1000, min=1)
    dry_run: bool = flag("Only show what would be run, and how long it would take.", "--dry-run")
    emit: Literal["slurm", "sh"] | None = option(
        "slurm|sh", "Print a script that runs each row by itself, for a scheduler, and run nothing."
    )

    def part(self) -> tuple[int, int]:
        """The part, and the number of parts."""
        if self.shard is None:
            return 1, 1
        number, _, count = self.shard.partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise typer.BadParameter(f"--shard {self.shard}: expected I/N with 1 <= I <= N, such as 2/8")
        return int(number), int(count)


@command(app, "ls", "ofqctl study ls", "ofqctl study ls --json")
def list_(printing: options.PrintOptions) -> None:
    """List the studies that come with ofqctl."""
    from ofqctl.jobs.study import list_studies

    with printing.sink() as sink:
        sink.show(list_studies(), _render_list)


@command(
    app,
    "run",
    "ofqctl study run smoke",
    "ofqctl study run ptq --data imagenet-train=imagenet/train imagenet-val=imagenet/val --dry-run",
    "ofqctl study run my.yaml --only '*seed=0*' --jobs 2",
    "ofqctl study run my.yaml --output /shared/my --shard 2/8",
    "ofqctl study run my.yaml --emit slurm > jobs.sh",
)
def run(
    study: Named,
    *,
    about: _StudyOptions,
    rows: _RuleOptions,
    printing: options.PrintOptions,
    execution: _Execution,
) -> None:
    """Run what is missing of a study; what was interrupted goes on, and what is done is not done again."""
    from ofqctl.cli.failures import InterruptionError
    from ofqctl.jobs.study import RunStudyRequest, given, run_study

    request = RunStudyRequest(
        **_about(study, about, rows.rules()),
        jobs=execution.jobs,
        shard=execution.part(),
        dry=execution.dry_run or execution.emit is not None,
        most_rows=execution.most_rows,
        seconds=execution.time_budget,
        check=_parse,
    )
    with printing.sink() as sink:
        try:
            result = run_study(request, sink.progress)
        except KeyboardInterrupt as end:
            again = shlex.join(["ofqctl", "study", "run", study, *given(request)])
            raise InterruptionError(f"interrupted; what is done is kept: `{again}` goes on", *end.args) from None
        if execution.emit is None:
            sink.show(result, _render_run)
        else:
            say(_script(result, execution.emit))
    if any(row.state == "failed" for row in result.rows) and not result.dry:
        raise typer.Exit(1)


@command(app, "status", "ofqctl study status smoke", "ofqctl study status runs/studies/my --json")
def status(study: Named, *, about: _StudyOptions, rows: _RuleOptions, printing: options.PrintOptions) -> None:
    """Show how far a study is, what failed, and how long the rest takes."""
    from ofqctl.jobs.study import StudyRequest, study_status

    with printing.sink() as sink:
        sink.show(study_status(StudyRequest(**_about(study, about, rows.rules()))), _render_status)


@group("Output")
class _Report:
    html: Path | None = option("FILE", "Write an HTML page: one self-contained file.")
    markdown: Path | None = option("FILE", "Write the tables as Markdown.")


@command(
    app,
    "report",
    "ofqctl study report smoke --html smoke.html",
    "ofqctl study report runs/studies/my --json > my.json",
    "ofqctl study report my.json --markdown my.md",
)
def report(study: Named, *, about: _StudyOptions, output: _Report, printing: options.PrintOptions) -> None:
    """Show the figures of a study over its seeds, in tables, and what failed; STUDY may be a report's JSON, too."""
    from ofqctl.jobs.study import ReportRequest, study_report
    from ofqctl.studies.ledger import Rules

    request = ReportRequest(**_about(study, about, Rules()), html=output.html, markdown=output.markdown)
    with printing.sink() as sink:
        sink.show(study_report(request), lambda made: _render_report(made, output))


def _about(study: str, about: _StudyOptions, rules: "Rules") -> dict[str, Any]:
    return {
        "study": study,
        "folder": about.output,
        "data": _pairs("--data", about.data),
        "models": _pairs("--model", about.model),
        "only": about.only,
        "rules": rules,
    }


def _pairs(name: str, texts: Sequence[str] | None) -> dict[str, str]:
    found = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise typer.BadParameter(f"{name} {text}: expected NAME=VALUE")
        found[key] = value
    return found


def _parse(words: Sequence[str]) -> None:
    """Check that words are a command of this program, with options that it has."""
    from ofqctl.cli.app import parsed

    try:
        parsed(words)
    except Exception as error:
        said = getattr(error, "format_message", error.__str__)()
        raise StudyError(f"`ofqctl {shlex.join(words)}`: {said}") from error


def _script(result: "StudyRunResult", kind: Literal["slurm", "sh"]) -> str:
    """A script that runs each row that is not done by itself."""
    commands = [row.command for row in result.rows if row.state not in ("done", "failed")]
    if kind == "sh":
        return "\n".join(["#!/bin/sh", *commands])
    lines = [f"  {number}) {line} ;;" for number, line in enumerate(commands, 1)]
    return "\n".join(
        [
            "#!/bin/sh",
            f"#SBATCH --job-name={result.study}",
            f"#SBATCH --array=1-{max(len(commands), 1)}",
            "case $SLURM_ARRAY_TASK_ID in",
            *lines,
            "esac",
        ]
    )


def _render_list(result: "StudyListResult") -> Iterator[Table]:
    table = Table(["study", ">rows", ">takes about", "needs", "description"])
    for study in result.studies:
        takes = "" if study.minutes is None else duration(60.0 * study.minutes)
        table.add(study.name, study.rows, takes, " ".join(study.data), study.description)
    yield table


def _render_run(result: "StudyRunResult") -> Iterator[Table | str]:
    yield _states(result.rows)
    yield from _failures(result.rows)
    if result.dry:
        from ofqctl.studies.states import is_left

        takes = f", about {duration(result.estimate)}" if result.estimate else ""
        yield f"\nto run    {sum(map(is_left, result.rows))} of {len(result.rows)} rows{takes}"
    else:
        yield f"\nfigures   in {result.folder}, after {duration(result.seconds)}"
        yield Aside(f"Next: `ofqctl study report {shlex.quote(result.folder)} --html report.html`")


def _render_status(result: "StudyStatus") -> Iterator[Table | str]:
    yield _states(result.rows)
    yield from _failures(result.rows)
    done = sum(row.state == "done" for row in result.rows)
    left = f"; the rest takes about {duration(result.estimate)}" if result.estimate else ""
    yield f"\ndone      {done} of {len(result.rows)} rows{left}"


def _states(rows: "Sequence[RowStatus]") -> Table:
    table = Table(["row", "state", ">time", ">left, about"])
    for row in rows:
        time = "" if row.seconds is None else duration(row.seconds)
        table.add(row.row, row.state, time, "" if row.estimate is None else duration(row.estimate))
    return table


def _failures(rows: "Sequence[RowStatus]") -> Iterator[str]:
    for row in rows:
        if row.failure is not None:
            yield f"failed    {row.row}: {row.failure.message}"
        elif row.reason is not None:
            yield f"left out  {row.row}: {row.reason}: `{row.command}`"


def _render_report(made: "StudyReport", output: _Report) -> Iterator[Table | str]:
    from ofqctl.studies.wording import heading, meaning, texts

    for shown in made.tables:
        yield f"{shown.title}:"
        table = Table([*(f"{axis}" for axis in shown.axes), *(f">{heading(made, column)}" for column in shown.columns)])
        for line in shown.lines:
            cells = zip(texts(made, shown, line), line.cells, strict=True)
            table.add(*line.labels, *(f"{text} *" if cell.best else text for text, cell in cells))
        yield table
    yield from meaning(made, made.tables, "Starred")
    for claim in made.claims:
        yield f"claim     {claim.paper}: {claim.says} Here: {claim.verdict}."
    for row in made.failures:
        yield f"not there {row.row}: {row.reason}"
    for path in (output.html, output.markdown):
        if path is not None:
            yield f"written   to {path}"
