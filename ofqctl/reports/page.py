"""The frame of a page: its look, and the pieces that pages are put together from."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: Its heading, text.
        lead: What it is about, HTML.
        parts: What follows, HTML.
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


def section(title: str, lead: str, *parts: str) -> str:
    """A heading, a sentence and what it is about; nothing if there is nothing."""
    body = "\n".join(part for part in parts if part)
    return (
        f'<section>\n<h2>{escape(title)}</h2>\n<p class="lead">{escape(lead)}</p>\n{body}\n</section>' if body else ""
    )


def tiles(figures: Mapping[str, str]) -> str:
    """Large figures, each with its words."""
    cells = [
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(words)}</span></div>'
        for words, value in figures.items()
    ]
    return f'<div class="tiles">{"".join(cells)}</div>'


def cards(plots: Iterable[tuple[str, str, str]]) -> str:
    """Plots side by side, as many as fit: title, SVG and caption of each."""
    figures = [
        f'<figure class="card"><h3>{escape(title)}</h3>{svg}'
        + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
        + "</figure>"
        for title, svg, caption in plots
    ]
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def legend(entries: Iterable[tuple[str, str, bool]]) -> str:
    """Name, colour and whether it is dashed, of the curves that the plots of a section share."""
    items = [
        f'<span><i{" class=dashed" if dashed else ""} style="border-color: var(--{colour})"></i>{escape(name)}</span>'
        for name, colour, dashed in entries
    ]
    return f'<div class="legend">{"".join(items)}</div>' if items else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of text; headings that start with ``<`` are of columns aligned to the left, the first one names the row."""
    left = [column.startswith("<") for column in columns]
    kinds = [' class="text"' if is_left else "" for is_left in left]
    head = "".join(f"<th{kind}>{escape(c.removeprefix('<'))}</th>" for c, kind in zip(columns, kinds, strict=True))
    body = []
    for name, *cells in rows:
        inner = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds[1:], strict=True))
        body.append(f'<tr><th scope="row">{escape(name)}</th>{inner}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def heat_map(columns: Sequence[str], rows: Mapping[str, Mapping[str, tuple[float, str]]], corner: str) -> str:
    """Cells whose shade tells their value, from 0 to 1, and whose text says it.

    Args:
        columns: Names, in order.
        rows: By name, the cells by the names of the columns; one that is absent stays empty.
        corner: What the names of the rows are.
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


def definitions(words: Mapping[str, str]) -> str:
    """Words and what they mean."""
    return "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items()) + "</dl>"
