"""The results of ``ofqctl study ls | run | status | report``."""

from typing import Literal, Self

from pydantic import model_validator

from ofqctl.results.document import Document, IfAny, Part
from ofqctl.results.failure import Failure


class ShippedStudy(Part):
    """A study that comes with the program.

    Attributes:
        name: Its name.
        description: What it asks.
        rows: Number of its rows.
        data: Names of the data that the caller must say.
        models: Models by name, which the caller may replace.
        minutes: About how long it takes on two cores; None if that is not known.
    """

    name: str
    description: str
    rows: int
    data: tuple[str, ...]
    models: dict[str, str]
    minutes: float | None


class StudyListResult(Document):
    """The studies that come with the program.

    Attributes:
        studies: The studies, by name.
    """

    command: Literal["study ls"] = "study ls"
    studies: tuple[ShippedStudy, ...]


RowState = Literal["done", "other data", "other code", "failed", "left out", "running", "missing"]


class RowStatus(Part):
    """How far a row is.

    Attributes:
        row: Its name.
        state: ``done``; done with ``other data`` or ``other code`` than there are now; ``failed``; ``left out`` for
            want of a package or of time; ``running``, in some process; or ``missing``.
        failure: Why it failed.
        reason: Why it was left out.
        seconds: Time of its own command and of all that was measured; None if nothing was.
        estimate: What is left to do would take so many seconds; None if nothing is known, or nothing left.
        command: What runs it by itself.
        folder: Folder of its own command; None if there is none yet.
    """

    row: str
    state: RowState
    failure: Failure | None = None
    reason: str | None = None
    seconds: float | None = None
    estimate: float | None = None
    command: str
    folder: str | None = None


class RowsOfStudy(Document):
    """Rows of a study, and how far they are.

    Attributes:
        study: Its name.
        folder: Its folder.
        rows: The rows that were asked for.
        estimate: Estimated seconds of all that is left of them; None if that is not known.
    """

    study: str
    folder: str
    rows: tuple[RowStatus, ...]
    estimate: float | None


class StudyStatus(RowsOfStudy):
    """How far a study is."""

    command: Literal["study status"] = "study status"


class StudyRunResult(RowsOfStudy):
    """What a run of a study did.

    Attributes:
        seconds: Time that it took.
        dry: Whether nothing was run, only looked at.
    """

    command: Literal["study run"] = "study run"
    seconds: float
    dry: bool


class FigureKind(Part):
    """How a figure is shown.

    Attributes:
        title: Its name in tables.
        unit: Unit behind each value.
        digits: Digits behind the point.
        scale: What a value is multiplied with ahead of that.
        better: Which values are better.
        exact: Whether it is the same at every measurement.
        signed: Whether it is a difference.
    """

    title: str
    unit: str = ""
    digits: int = 2
    scale: float = 1.0
    better: Literal["higher", "lower", "neither"] = "neither"
    exact: bool = False
    signed: bool = False


class Averaged(Part):
    """A figure over seeds.

    Attributes:
        mean: Its mean.
        spread: Standard deviation over seeds; None with one.
        error: Standard error of the mean: over images and seeds where it is a mean over images, else over seeds; None
            if neither is known.
        values: The value of each seed.
        against: Name of the row that it is the difference to, if it is one.
    """

    mean: float
    spread: float | None
    error: float | None
    values: tuple[float, ...]
    against: str | None = None


class StudyRow(Part):
    """A row over its seeds.

    Attributes:
        row: Its name, without the seed.
        labels: Labels by axis; ``row`` is that of its kind.
        seeds: Seeds that are done; one that has no name if there is no such axis.
        wanted: Number of seeds that there are to be.
        figures: Figures by name.
    """

    row: str
    labels: dict[str, str]
    seeds: tuple[str, ...]
    wanted: int
    figures: dict[str, Averaged]


class FailedRow(Part):
    """A row that failed, and why; or that is not there, and why."""

    row: str
    failure: Failure | None
    reason: str


class Cell(Part):
    """A cell of a table.

    Attributes:
        mean: The figure; None if there is none.
        spread: Standard deviation over seeds.
        error: Standard error.
        seeds: Number of seeds.
        best: Whether it is better than every other one of its line by more than two standard errors of the difference.
    """

    mean: float | None
    spread: float | None = None
    error: float | None = None
    seeds: int = 0
    best: bool = False


class Line(Part):
    """A line of a table: its ``labels``, one for each axis that names it, and its ``cells``."""

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]


class Column(Part):
    """A column of a table: its ``title``, and the ``figure`` in it."""

    title: str
    figure: str


class StudyTable(Part):
    """A table.

    Attributes:
        title: Its heading.
        note: What else to know.
        axes: What the lines are named by.
        columns: Its columns.
        lines: Its lines.
    """

    title: str
    note: str
    axes: tuple[str, ...]
    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @model_validator(mode="after")
    def _check_lines(self) -> Self:
        for number, line in enumerate(self.lines):
            if (len(line.labels), len(line.cells)) != (len(self.axes), len(self.columns)):
                raise ValueError(
                    f"lines.{number}: {len(line.labels)} labels and {len(line.cells)} cells; "
                    f"there are {len(self.axes)} axes and {len(self.columns)} columns"
                )
        return self


class Point(Part):
    """A row in a plot: its name, the label ``by`` which it has its colour, its figures, whether it is on the front."""

    row: str
    by: str
    x: float
    y: float
    front: bool


class StudyPlot(Part):
    """A plot of one figure against another.

    Attributes:
        title: Its heading.
        note: What else to know.
        x: Figure of the horizontal axis.
        y: Figure of the vertical axis.
        points: The rows in it.
    """

    title: str
    note: str
    x: str
    y: str
    points: tuple[Point, ...]


Verdict = Literal["holds", "contradicted", "undecided"]


class ComparedPair(Part):
    """Two rows of which a claim says that the first is better.

    Attributes:
        first: The row that is said to be better.
        second: The other.
        difference: By how much the figure of the first is above that of the second.
        error: Standard error of that; None if it is not known.
        verdict: ``holds`` or ``contradicted`` if they differ by more than two standard errors, else ``undecided``.
    """

    first: str
    second: str
    difference: float
    error: float | None
    verdict: Verdict


class CheckedClaim(Part):
    """What a paper says, and what was measured.

    Attributes:
        name: Name of its page.
        paper: Authors, title, place and year.
        says: What it says.
        figure: Name of the figure that it is about.
        pairs: Rows next to each other in its order.
        verdict: ``holds`` if it does for all pairs, ``contradicted`` if one contradicts it, else ``undecided``.
    """

    name: str
    paper: str
    says: str
    figure: str
    pairs: tuple[ComparedPair, ...]
    verdict: Verdict


class Provenance(Part):
    """Where the figures come from; with more than one entry in a list, they are of several.

    Attributes:
        commits: Commits of the program.
        codes: Digests of the code that computes.
        machines: CPUs and numbers of cores.
        versions: Versions of libraries, by name.
        data: Digests of data, by name.
        first: When the first step began, in ISO 8601, UTC.
        last: When the last one began.
        beside: Largest number of steps that ran beside one in the same command.
    """

    commits: tuple[str, ...]
    codes: tuple[str, ...]
    machines: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    data: dict[str, tuple[str, ...]]
    first: IfAny[str] = None
    last: IfAny[str] = None
    beside: int


class StudyReport(Document):
    """The figures of a study.

    Attributes:
        study: Its name.
        description: What it asks.
        commands: The command of each kind of rows.
        kinds: How figures are shown, by name.
        rows: The rows that are done, over their seeds.
        failures: Rows that failed or are missing.
        tables: Tables of the figures.
        plots: Plots of the figures.
        claims: Claims that were checked.
        provenance: Where they come from.
    """

    command: Literal["study report"] = "study report"
    study: str
    description: str
    commands: dict[str, str]
    kinds: dict[str, FigureKind]
    rows: tuple[StudyRow, ...]
    failures: tuple[FailedRow, ...]
    tables: tuple[StudyTable, ...]
    plots: tuple[StudyPlot, ...]
    claims: tuple[CheckedClaim, ...] = ()
    provenance: Provenance
