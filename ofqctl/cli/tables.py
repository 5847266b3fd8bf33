"""Tables: columns without frames. No word is broken, and on a terminal a table fits, if its words fit at all."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ofqctl.cli.printing import as_shown, broken, say, say_prose, terminal_width, visible

_MARKS = re.compile(r"(-?)(>?)(.*)", re.DOTALL)
_GAP = 2
_PROSE = 24  # a narrower column does not go on in the next line


@dataclass
class Table:
    """A table to print.

    Attributes:
        columns: Headings. A column whose heading starts with ``>`` is right-aligned. A column whose heading starts with
            ``-`` or ``->`` is left out where there is no room.
        rows: Rows, with one text for each column.
        title: Title of the table, or an empty text.
    """

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    title: str = ""

    def add(self, *cells: object) -> None:
        """Append a row."""
        self.rows.append([visible(str(cell)) for cell in cells])


@dataclass
class _Column:
    """A column; the texts are as the stream shows them."""

    heading: str
    right: bool
    optional: bool
    texts: list[str]

    def __post_init__(self) -> None:
        longest = max((_cells(text) for text in self.texts), default=0)
        word = max(_cells(word) for text in (self.heading, *self.texts) for word in text.split() or [""])
        self.width = max(_cells(self.heading), longest)
        self.least = max(word, longest if self.right else min(longest, _PROSE))

    def lines(self, text: str) -> list[str]:
        """The lines of a cell."""
        return broken(text, self.width) if _cells(text) > self.width else [text]

    def aligned(self, text: str) -> str:
        """A line of a cell, as wide as the column."""
        blanks = " " * (self.width - _cells(text))
        return blanks + text if self.right else text + blanks


def print_table(table: Table) -> None:
    """Print a table, whole in a pipe or a file, on a terminal so that it fits.

    There, columns without any text are left out. Where there is no room, words go on in the next line, then columns
    that may are left out, which a line tells; what still does not fit is printed with a line for each cell.
    """
    if table.title:
        say_prose(table.title)
    columns = [_column(table, place) for place in range(len(table.columns))]
    room = terminal_width()
    if room is not None and table.rows:
        columns = [column for column in columns if any(column.texts) or column is columns[0]]
    shown = columns if room is None else _fitted(columns, room)
    if room is not None and not shown:
        _print_cells(columns, room)
        return
    if any(column.heading for column in shown):
        _print_row(shown, [column.heading for column in shown])
    if room is not None and any(column.heading for column in shown):
        rule = "─" if as_shown("─") == "─" else "-"
        _print_row(shown, [rule * column.width for column in shown])
    for row in range(len(table.rows)):
        _print_row(shown, [column.texts[row] for column in shown])
    if left_out := [column.heading for column in columns if column not in shown]:
        say_prose(f"(for lack of room without: {', '.join(left_out)})")


def _column(table: Table, place: int) -> _Column:
    match = _MARKS.fullmatch(visible(table.columns[place]))
    assert match is not None
    texts = [as_shown(row[place]) for row in table.rows]
    return _Column(as_shown(match[3]), bool(match[2]), bool(match[1]), texts)


def _fitted(columns: list[_Column], room: int) -> list[_Column]:
    """The columns that are printed on lines of this width, narrowed; none if they do not fit."""
    kept = list(columns)
    while _total([column.least for column in kept]) > room:
        optional = [column for column in kept if column.optional]
        if not optional:
            return []
        kept.remove(optional[-1])
    while (excess := _total([column.width for column in kept]) - room) > 0:
        widest = max((column for column in kept if column.width > column.least), key=lambda column: column.width)
        widest.width = max(widest.least, widest.width - excess)
    return kept


def _total(widths: list[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _print_row(columns: list[_Column], texts: list[str]) -> None:
    cells = [column.lines(text) for column, text in zip(columns, texts, strict=True)]
    for line in range(max(map(len, cells))):
        parts = (
            column.aligned(own[line] if line < len(own) else "") for column, own in zip(columns, cells, strict=True)
        )
        say((" " * _GAP).join(parts).rstrip())


def _print_cells(columns: list[_Column], room: int) -> None:
    indent = max(_cells(column.heading) for column in columns) + _GAP
    for row in range(len(columns[0].texts)):
        for column in columns:
            if not column.texts[row]:
                continue
            lines = broken(column.texts[row], max(1, room - indent))
            heading = column.heading + " " * (indent - _cells(column.heading))
            say(f"{heading}{f'{chr(10)}{chr(32) * indent}'.join(lines)}".rstrip())
        say("")


def _cells(text: str) -> int:
    """Width of a text on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
