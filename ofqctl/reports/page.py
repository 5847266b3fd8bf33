"""The layout of a page, and the parts that pages consist of."""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

_STYLE = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("palette.css", "page.css"))
_QUOTED = re.compile(r"`([^`]+)`")


class Key(NamedTuple):
    """An entry of a legend: its name, its colour, whether its line is dashed, None without a line, and its marker."""

    name: str
    colour: str
    dashed: bool | None = False
    sign: str = ""


class Best(str):
    """The text of a cell that is better than the others."""

    __slots__ = ()


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """The HTML of a complete page.

    Args:
        title: Heading, as text.
        lead: Introduction, as HTML.
        parts: Sections, as HTML.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body><main>",
            f'<h1>{escape(title)}</h1>\n<p class="lead">{lead}</p>',
            *parts,
            "</main></body>",
            "</html>\n",
        ]
    )


def sentence(text: str) -> str:
    """A note as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def section(title: str, lead: str, *parts: str) -> str:
    """A section with heading, introduction and content; empty if there is no content."""
    body = "\n".join(part for part in parts if part)
    return (
        f'<section>\n<h2>{escape(title)}</h2>\n<p class="lead">{escape(lead)}</p>\n{body}\n</section>' if body else ""
    )


def tiles(figures: Mapping[str, str]) -> str:
    """Large figures, each with a caption."""
    cells = [
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(words)}</span></div>'
        for words, value in figures.items()
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def cards(plots: Iterable[tuple[str, str, str]], *, wide: bool = False) -> str:
    """Plots side by side, as many as fit, or fewer if they are wide; title, SVG and caption for each."""
    figures = [
        f'<figure class="card"><h3>{escape(title)}</h3>{svg}'
        + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
        + "</figure>"
        for title, svg, caption in plots
    ]
    return f'<div class="cards{" wide" if wide else ""}">{"".join(figures)}</div>' if figures else ""


def legend(entries: Iterable[Key]) -> str:
    """The legend of plots."""
    items = [f"<span>{_swatch(key)}{escape(key.name)}</span>" for key in entries]
    return f'<div class="legend">{"".join(items)}</div>' if items else ""


def _swatch(key: Key) -> str:
    style = f'style="color: var(--{key.colour})"'
    line = "" if key.dashed is None else f"<i{' class=dashed' if key.dashed else ''} {style}></i>"
    return line + (f"<b {style}>{key.sign}</b>" if key.sign else "")


def findings(items: Iterable[tuple[str, str]]) -> str:
    """What was found, and what to do about it, where what stands in backticks is code."""
    texts = [f"<p>{escape(text)}</p>" + (f"<p>{_code(advice)}</p>" if advice else "") for text, advice in items]
    return f'<ul class="findings">{"".join(f"<li>{text}</li>" for text in texts)}</ul>' if texts else ""


def _code(text: str) -> str:
    return _QUOTED.sub(r"<code>\1</code>", escape(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text, whose first column names the row.

    Args:
        columns: Headings behind ``<`` or ``>``, the side that the column is aligned to.
        rows: Cells of each row.
    """
    kinds = [' class="text"' if column[0] == "<" else "" for column in columns]
    head = "".join(f"<th{kind}>{escape(column[1:])}</th>" for column, kind in zip(columns, kinds, strict=True))
    body = []
    for name, *cells in rows:
        inner = "".join(f"<td{kind}>{_cell(cell)}</td>" for cell, kind in zip(cells, kinds[1:], strict=True))
        body.append(f'<tr><th scope="row">{escape(name)}</th>{inner}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell(text: str) -> str:
    return f"<mark>{escape(text)}</mark>" if isinstance(text, Best) else escape(text)


def heat_map(columns: Sequence[str], rows: Mapping[str, Mapping[str, tuple[float, str]]], corner: str) -> str:
    """A table whose cells are shaded by their value, from 0 to 1, and contain it as text.

    Args:
        columns: Names of the columns, in order.
        rows: For each row by name, cells by column name; missing cells stay empty.
        corner: Heading of the row names.
    """
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = []
    for name, cells in rows.items():
        inner = ""
        for column in columns:
            if column in cells:
                shade, text = cells[column]
                inner += f'<td class="heat" style="--h: {max(0.0, min(1.0, shade)):.3f}">{escape(text)}</td>'
            else:
                inner += '<td class="none">·</td>'
        body.append(f'<tr><th scope="row">{escape(name)}</th>{inner}</tr>')
    corner_cell = f'<th class="text">{escape(corner)}</th>'
    return (
        f'<div class="scroll"><table class="map"><thead><tr>{corner_cell}{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def definitions(words: Mapping[str, str], *, code: bool = False) -> str:
    """A list of terms and their definitions, which may be code."""
    start, end = ("<dd><code>", "</code></dd>") if code else ("<dd>", "</dd>")
    items = [f"<dt>{escape(word)}</dt>{start}{escape(text)}{end}" for word, text in words.items()]
    return f"<dl>{''.join(items)}</dl>" if items else ""
