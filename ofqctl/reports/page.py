"""The layout of a page, and the parts that pages consist of."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

_STYLE = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("palette.css", "page.css"))


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


def cards(plots: Iterable[tuple[str, str, str]]) -> str:
    """Plots side by side, as many as fit; title, SVG and caption for each."""
    figures = [
        f'<figure class="card"><h3>{escape(title)}</h3>{svg}'
        + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "")
        + "</figure>"
        for title, svg, caption in plots
    ]
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def legend(entries: Iterable[tuple[str, str, bool]]) -> str:
    """The legend of a section's plots: name, colour and dashing of each curve."""
    items = [
        f'<span><i{" class=dashed" if dashed else ""} style="border-color: var(--{colour})"></i>{escape(name)}</span>'
        for name, colour, dashed in entries
    ]
    return f'<div class="legend">{"".join(items)}</div>' if items else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of text; columns whose heading starts with ``<`` are left-aligned, and the first column names the row."""
    left = [column.startswith("<") for column in columns]
    kinds = [' class="text"' if is_left else "" for is_left in left]
    head = "".join(f"<th{kind}>{escape(c.removeprefix('<'))}</th>" for c, kind in zip(columns, kinds, strict=True))
    body = []
    for name, *cells in rows:
        inner = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(cells, kinds[1:], strict=True))
        body.append(f'<tr><th scope="row">{escape(name)}</th>{inner}</tr>')
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


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


def definitions(words: Mapping[str, str]) -> str:
    """A list of terms and their definitions."""
    return "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in words.items()) + "</dl>"
