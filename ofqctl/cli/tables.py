"""Tables: framed on a terminal, aligned text in a pipe or a file; a word is never broken, and nothing is cut off."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import wrap

from ofqctl.cli.printing import say, visible, write


@dataclass
class Table:
    """A table to print.

    Attributes:
        columns: Headings; columns whose heading starts with ``>`` are right-aligned.
        rows: Rows, with one text for each column.
        title: Title of the table, or an empty text.
    """

    columns: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)
    title: str = ""

    def add(self, *cells: object) -> None:
        """Append a row."""
        self.rows.append([visible(str(cell)) for cell in cells])


def print_table(table: Table) -> None:
    """Print a table: with a frame on a terminal, otherwise as aligned text.

    A terminal that is too narrow gets several tables, or, where a word takes a whole line, a line for each cell.
    """
    if table.title:
        say(table.title)
    if sys.stdout is None or not sys.stdout.isatty():
        _print_aligned(table)
        return
    from rich.console import Console

    width = Console().width
    groups = list(_groups(table, width))
    if any(sum(_least(table, column) for column in columns) + _frame(columns) > width for columns in groups):
        _print_cells(table, width)
        return
    for columns in groups:
        _print_framed(table, columns, width)


def _print_aligned(table: Table) -> None:
    rows = [[column.removeprefix(">") for column in table.columns], *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        cells = [
            cell.rjust(width) if column.startswith(">") else cell.ljust(width)
            for cell, width, column in zip(row, widths, table.columns, strict=True)
        ]
        say("  ".join(cells).rstrip())


def _print_cells(table: Table, width: int) -> None:
    headings = [column.removeprefix(">") for column in table.columns]
    indent = max(map(len, headings)) + 2
    for row in table.rows:
        for heading, cell in zip(headings, row, strict=True):
            lines = wrap(cell, max(1, width - indent), break_long_words=False, break_on_hyphens=False)
            say(f"{heading:<{indent}}{f'{chr(10):<{indent + 1}}'.join(lines)}".rstrip())
        say("")


def _groups(table: Table, width: int) -> Iterator[list[int]]:
    """The columns of each table to print: as many as fit beside the first one, which every table has."""
    least = [_least(table, column) for column in range(len(table.columns))]
    group = [0]
    for column in range(1, len(table.columns)):
        wanted = [*group, column]
        if len(group) > 1 and sum(least[own] for own in wanted) + _frame(wanted) > width:
            yield group
            wanted = [0, column]
        group = wanted
    yield group


def _print_framed(table: Table, columns: list[int], width: int) -> None:
    from rich.console import Console
    from rich.table import Table as Framed
    from rich.text import Text

    framed = Framed(header_style="")
    widths = _widths(table, columns, width)
    for column, own in zip(columns, widths, strict=True):
        heading = table.columns[column]
        justify = "right" if heading.startswith(">") else "left"
        framed.add_column(Text(heading.removeprefix(">")), justify=justify, width=own)  # type: ignore[arg-type]
    for row in table.rows:
        framed.add_row(*(Text(row[column]) for column in columns))
    console = Console(width=width)
    with console.capture() as drawn:
        console.print(framed)
    write(drawn.get())


def _widths(table: Table, columns: list[int], width: int) -> list[int]:
    """Widths of columns: what their cells take, the widest narrowed while there is no room, but never below a word."""
    from rich.cells import cell_len

    least = [_least(table, column) for column in columns]
    widths = [max(cell_len(text) for text in _texts(table, column)) for column in columns]
    while sum(widths) + _frame(columns) > width:
        room = [own - smallest for own, smallest in zip(widths, least, strict=True)]
        if not any(room):
            break
        widths[max(range(len(room)), key=lambda place: (room[place] > 0, widths[place]))] -= 1
    return widths


def _least(table: Table, column: int) -> int:
    """Width of the longest word of a column."""
    from rich.cells import cell_len

    return max(cell_len(word) for text in _texts(table, column) for word in text.split() or [""])


def _texts(table: Table, column: int) -> list[str]:
    return [table.columns[column].removeprefix(">"), *(row[column] for row in table.rows)]


def _frame(columns: Sequence[int]) -> int:
    """Width of the lines and blanks around columns."""
    return 3 * len(columns) + 1
