"""What a study says: its data, models and rows, what is measured of them, and what is made of the figures."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from ofqctl.errors import did_you_mean
from ofqctl.registry import Frozen
from ofqctl.results.study import FigureKind

SEED, ROW = "seed", "row"  # the axis that figures are averaged over, and the one of the names of rows
MOST_ROWS = 1000

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")]
Label = Annotated[str, BeforeValidator(lambda value: value if isinstance(value, dict | list) else _text(value))]
OWN_FILES = {
    "output": "model.onnx",
    "predictions": "predictions.csv",
}  # of a script, by what they are called in its words
PLACEHOLDER = re.compile(r"\{([A-Za-z][A-Za-z0-9_-]*)\}")


def _text(value: Any) -> str:
    """A value of YAML as a command line has it."""
    return str(value).lower() if isinstance(value, bool) else "" if value is None else str(value)


def _axis(values: Any) -> Any:
    """An axis as text by label; a list stands for values that are their own labels."""
    return {_text(value): _text(value) for value in values} if isinstance(values, list) else values


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Axis = Annotated[dict[Label, Label], BeforeValidator(_axis)]
"""Texts that stand in a command, by their labels."""

Matrix = dict[Name, Axis]
Where = dict[Name, Annotated[tuple[Label, ...], BeforeValidator(_listed)]]
"""Labels by axis: what has one of them on each of these axes."""

Measured = dict[str, str | None]
"""Options by measure, as its command takes them."""


class Made(Frozen):
    """A model that a command makes.

    Attributes:
        make: The command, as for a row.
    """

    make: str


class RowDefinition(Frozen):
    """Rows of one kind: a command for each point of the matrix.

    Attributes:
        command: The command after ``ofqctl``, or ``python FILE ...``, which ends with 77 where it cannot run;
            ``{NAME}`` stands for data, a model, or the text of an axis.
        matrix: Axes of these rows, in place of the study's of the same name.
        measure: What is measured of them; None for what the study says.
        needs: Packages without which these rows are left out.
        launcher: What starts the command, such as ``torchrun --nproc-per-node 4``; the program itself if empty.
        minutes: About how long one takes on two cores, for estimates ahead of the first.
    """

    command: str
    matrix: Matrix = Field(default_factory=dict)
    measure: Measured | None = None
    needs: tuple[str, ...] = ()
    launcher: str = ""
    minutes: float | None = None


class FigureDefinition(FigureKind):
    """A figure from the document that a row's command prints, and how it is shown.

    Attributes:
        path: Its keys, joined by dots; a number counts the entries of a list, from the end if it is negative.
    """

    path: str


class Table(Frozen):
    """A table of figures.

    Attributes:
        title: Its heading.
        note: What else to know, one sentence or more.
        rows: Axes whose labels name the lines.
        columns: Axis whose labels name the columns; None for a column a figure.
        figures: Names of figures.
        best: Whether the best of a line or of a column is marked; by default of a line where ``columns`` names an axis.
        where: Which rows it is of; all by default.
    """

    title: str
    note: str = ""
    rows: tuple[str, ...]
    columns: str | None = None
    figures: tuple[str, ...] = Field(min_length=1)
    best: Literal["line", "column"] | None = None
    where: Where = Field(default_factory=dict)


class Plot(Frozen):
    """Points of one figure against another, and the front of those that no other beats in both.

    Attributes:
        title: Its heading.
        note: What else to know.
        x: Figure of the horizontal axis.
        y: Figure of the vertical axis.
        by: Axis whose labels have a colour each.
        where: Which rows it is of; all by default.
    """

    title: str
    note: str = ""
    x: str
    y: str
    by: str = ROW
    where: Where = Field(default_factory=dict)


class Claim(Frozen):
    """What a paper says, as an order of rows by a figure.

    Attributes:
        name: Name of the page that it stands on; claims of one paper share it.
        paper: Authors, title, place and year.
        says: What it says, in a sentence.
        figure: Name of the figure.
        axis: The axis along which rows are in order.
        order: Labels of that axis; by the claim, each is better than the next.
        where: Which rows it is of; rows that differ on another axis are each compared among themselves.
    """

    name: Name
    paper: str
    says: str
    figure: str
    axis: str = ROW
    order: tuple[Label, ...] = Field(min_length=2)
    where: Where = Field(default_factory=dict)


class Study(Frozen):
    """A study.

    Attributes:
        name: Its name, which its folder keeps.
        description: What it asks, in a sentence.
        data: Where each of its data lies, by name; None for what the caller must say.
        models: Models by name: as commands take them, or the command that makes one.
        matrix: Axes of all rows; a row has those that its command names.
        exclude: Points of the matrix that are left out.
        rows: Rows by name.
        measure: What is measured of them.
        figures: Further figures, from the documents that the rows' commands print.
        tables: Tables to make.
        plots: Plots to make.
        claims: Claims to check.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$")]
    description: str
    data: dict[Name, str | None] = Field(default_factory=dict)
    models: dict[Name, str | Made] = Field(default_factory=dict)
    matrix: Matrix = Field(default_factory=dict)
    exclude: tuple[Where, ...] = ()
    rows: dict[Name, RowDefinition] = Field(min_length=1)
    measure: Measured = Field(default_factory=dict)
    figures: dict[Name, FigureDefinition] = Field(default_factory=dict)
    tables: tuple[Table, ...] = ()
    plots: tuple[Plot, ...] = ()
    claims: tuple[Claim, ...] = ()

    def axes_of(self, row: RowDefinition) -> Matrix:
        """The axes that a row's command and what is measured of it name."""
        texts = [row.command, *(options or "" for options in self.measured(row).values())]
        matrix = self.matrix | row.matrix
        named = self._named(texts, matrix)
        return {axis: values for axis, values in matrix.items() if axis in named}

    def measured(self, row: RowDefinition) -> Measured:
        """What is measured of a row."""
        return self.measure if row.measure is None else row.measure

    def _named(self, texts: Iterable[str], matrix: Matrix) -> set[str]:
        """Names in these texts, and in those that they stand for."""
        found, waiting = set[str](), list(texts)
        while waiting:
            for name in set(PLACEHOLDER.findall(waiting.pop())) - found:
                found.add(name)
                model = self.models.get(name, "")
                waiting += [model.make if isinstance(model, Made) else model, *matrix.get(name, {}).values()]
        return found

    @property
    def axes(self) -> dict[str, set[str]]:
        """Labels by axis, of all rows; that of the rows' names too."""
        found: dict[str, set[str]] = {ROW: set(self.rows)}
        for row in self.rows.values():
            for axis, values in self.axes_of(row).items():
                found.setdefault(axis, set()).update(values)
        return found

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Check that a name stands for one thing, and that every name that is used stands for something."""
        axes = set(self.matrix).union(*(row.matrix for row in self.rows.values()))
        kinds = {"data": set(self.data), "models": set(self.models), "matrix": axes}
        for first, second in (("data", "models"), ("data", "matrix"), ("models", "matrix")):
            if both := kinds[first] & kinds[second]:
                raise ValueError(f"{first} and {second}: both have the name '{min(both)}'")
        if ROW in axes:
            raise ValueError(f"matrix: '{ROW}' is the axis of the rows' names")
        self._check_models()
        for name, values in (*self.matrix.items(), *(one for row in self.rows.values() for one in row.matrix.items())):
            for text in values.values():
                _check_placeholders(f"matrix.{name}", text, [*self.data, *self.models])
        known = [*self.data, *self.models, *axes, *OWN_FILES]
        for name, row in self.rows.items():
            matrix = self.matrix | row.matrix
            for axis, values in matrix.items():
                if axis in self._named(values.values(), matrix):
                    raise ValueError(f"matrix.{axis}: its texts name a model that is made with '{axis}' itself")
            for measure, options in {"command": row.command, **self.measured(row)}.items():
                _check_placeholders(f"rows.{name}.{measure}", options or "", known)
        return self

    def _check_models(self) -> None:
        """Check that models are made of data and of models ahead of them."""
        axes = set(self.matrix).union(*(row.matrix for row in self.rows.values()))
        ahead = [*self.data, *axes]
        for name, model in self.models.items():
            if isinstance(model, Made):
                _check_placeholders(f"models.{name}", model.make, [*ahead, *OWN_FILES])
            else:
                _check_placeholders(f"models.{name}", model, ahead)
            ahead.append(name)

    @model_validator(mode="after")
    def _check_axes(self) -> Self:
        """Check the axes and labels that tables, plots and exclusions name."""
        axes = self.axes
        for number, points in enumerate(self.exclude):
            _check_where(f"exclude.{number}", points, axes)
        for number, table in enumerate(self.tables):
            _check_where(f"tables.{number}.where", table.where, axes)
            for axis in (*table.rows, *([] if table.columns is None else [table.columns])):
                _check_axis(f"tables.{number}", axis, axes)
        for number, plot in enumerate(self.plots):
            _check_where(f"plots.{number}.where", plot.where, axes)
            _check_axis(f"plots.{number}.by", plot.by, axes)
        for number, claim in enumerate(self.claims):
            _check_where(f"claims.{number}.where", claim.where, axes)
            _check_where(f"claims.{number}.order", {claim.axis: claim.order}, axes)
        return self


def _check_placeholders(where: str, text: str, known: list[str]) -> None:
    for name in PLACEHOLDER.findall(text):
        if name not in known:
            hint = did_you_mean(name, known) or f"known are {', '.join(known)}"
            raise ValueError(f"{where}: nothing is called '{name}'; {hint}")


def _check_axis(where: str, axis: str, axes: Mapping[str, set[str]]) -> None:
    if axis not in axes:
        raise ValueError(f"{where}: no row has an axis '{axis}'; there are {', '.join(sorted(axes))}")


def _check_where(where: str, points: Where, axes: Mapping[str, set[str]]) -> None:
    for axis, labels in points.items():
        _check_axis(where, axis, axes)
        for label in labels:
            if label not in axes[axis]:
                hint = did_you_mean(label, axes[axis]) or f"there are {', '.join(sorted(axes[axis]))}"
                raise ValueError(f"{where}.{axis}: no '{label}'; {hint}")
