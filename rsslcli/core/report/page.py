"""A document of headings, text, tables and figures, as a self-contained HTML page and as Markdown.

All text is escaped, so content from a run's files is displayed, never interpreted.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the title of the page."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Answer:
    """The paragraph that a reader must see first."""

    text: str


@dataclass(frozen=True)
class Notes:
    """A highlighted list of remarks."""

    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: frozenset[str] = frozenset()  #: the columns that hold words, not numbers
    #: on a narrow screen each row becomes a block with one line per cell; other tables scroll behind a
    #: fixed first column
    stacked: bool = False


@dataclass(frozen=True)
class Figure:
    """A picture as SVG for wide screens, as SVG for narrow ones, and as the PNG file `name` beside the page.

    `alt` describes it in words.
    """

    name: str
    caption: str
    alt: str
    svg: bytes
    narrow_svg: bytes
    png: bytes


@dataclass(frozen=True)
class Tile:
    """A small image with lines of text below it."""

    lines: Sequence[str]
    jpeg: bytes | None  #: None leaves the text alone


@dataclass(frozen=True)
class Gallery:
    """Rows of small images, each with its name; the JPEG file `name` beside the page has them all."""

    name: str
    caption: str
    rows: Sequence[tuple[str, Sequence[Tile]]]
    jpeg: bytes | None  #: None if there are no images


Block = Heading | Text | Answer | Notes | Table | Figure | Gallery


def to_html(blocks: Sequence[Block]) -> str:
    """The document as a single HTML file without scripts or external resources; light, dark and for print."""
    title = next(block.text for block in blocks if isinstance(block, Heading))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(map(_html, blocks))
        + "\n</main>\n</body>\n</html>\n"
    )


def to_markdown(blocks: Sequence[Block]) -> str:
    """The document as GitHub-flavored Markdown; figures are the PNG files beside it."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Answer):
        return f'<p class="answer">{html.escape(block.text)}</p>'
    if isinstance(block, Notes):
        items = "".join(f"<li>{html.escape(item)}</li>" for item in block.items)
        return f'<aside role="note"><strong>{html.escape(block.title)}</strong><ul>{items}</ul></aside>'
    if isinstance(block, Figure):
        return (
            f'<figure><picture><source media="{_NARROW}" srcset="{_data_url(block.narrow_svg, "svg+xml")}">'
            f'<img src="{_data_url(block.svg, "svg+xml")}" alt="{html.escape(block.alt)}"></picture>'
            f"<figcaption>{html.escape(block.caption)}</figcaption></figure>"
        )
    return _gallery(block) if isinstance(block, Gallery) else _table(block)


def _gallery(block: Gallery) -> str:
    rows = "".join(
        f"<section><h4>{html.escape(name)}</h4><ul>{''.join(map(_tile, tiles))}</ul></section>\n"
        for name, tiles in block.rows
    )
    return f'<p>{html.escape(block.caption)}</p>\n<div class="gallery">\n{rows}</div>'


def _tile(tile: Tile) -> str:
    image = "" if tile.jpeg is None else f'<img src="{_data_url(tile.jpeg, "jpeg")}" alt="">'
    return f"<li>{image}{''.join(f'<span>{html.escape(line)}</span>' for line in tile.lines)}</li>"


def _table(block: Table) -> str:
    head = "".join(f'<th scope="col"{_side(block, name)}>{html.escape(name)}</th>' for name in block.columns)
    body = ""
    for first, *others in block.rows:
        cells = zip(block.columns[1:], others, strict=True)
        row = "".join(
            f'<td{_side(block, name)} data-column="{html.escape(name)}">{html.escape(cell)}</td>'
            for name, cell in cells
        )
        body += f'<tr><th scope="row">{html.escape(first)}</th>{row}</tr>\n'
    caption = html.escape(block.caption)
    kind = "stacked" if block.stacked else "scroll"
    return (
        f'<div class="{kind}" tabindex="0" role="region" aria-label="{caption}"><table>\n'
        f"<caption>{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>"
    )


def _side(table: Table, column: str) -> str:
    return ' class="words"' if column in table.words else ""


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_escape(block.text)}"
    if isinstance(block, Text):
        return _escape(block.text)
    if isinstance(block, Answer):
        return f"**{_escape(block.text)}**"
    if isinstance(block, Notes):
        return "\n".join([f"**{_escape(block.title)}**", "", *(f"- {_escape(item)}" for item in block.items)])
    if isinstance(block, Figure):
        return f"![{_escape(block.alt)}]({block.name})\n\n*{_escape(block.caption)}*"
    return _gallery_as_list(block) if isinstance(block, Gallery) else _markdown_table(block)


def _gallery_as_list(block: Gallery) -> str:
    lines = [f"**{_escape(block.caption)}**", ""]
    if block.jpeg is not None:
        lines += [f"![The images, a row for each line of the list]({block.name})", ""]
    for name, tiles in block.rows:
        lines.append(f"- {_escape(name)}: {_escape('; '.join(', '.join(tile.lines) for tile in tiles))}")
    return "\n".join(lines)


def _markdown_table(block: Table) -> str:
    sides = [":--", *(":--" if name in block.words else "--:" for name in block.columns[1:])]
    head, *rows = ([*map(_escape, row)] for row in (block.columns, *block.rows))
    lines = [f"| {' | '.join(row)} |" for row in (head, sides, *rows)]
    return "\n".join([f"**{_escape(block.caption)}**", "", *lines])


def _escape(text: str) -> str:
    """Escape what Markdown would read as markup, as HTML or as the end of a table cell."""
    return re.sub(r"([\\`*\[\]<>|&~]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)


#: The media query for screens that get narrow tables and pictures.
_NARROW = "screen and (max-width: 40rem)"
_CSS = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --faint: #57606a; --line: #d0d7de;
  --stripe: #f6f8fa; --note: #fff6dd; --edge: #b58900;
  --answer: #0072b2; }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --page: #14171b; --faint: #9aa4af;
  --line: #373e47; --stripe: #1c2127; --note: #2d2713; --edge: #d4a72c;
  --answer: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1, h2, h3 { line-height: 1.25; margin: 2.2em 0 .6em; text-wrap: balance; }
h1 { margin-top: .5em; } h2 { border-bottom: 1px solid var(--line); padding-bottom: .25em; }
p { max-width: 46rem; overflow-wrap: anywhere; }
.answer { font-size: 1.2rem; border-left: 4px solid var(--answer); padding: .2rem 0 .2rem 1rem; }
aside { background: var(--note); border-left: 4px solid var(--edge); padding: .7rem 1rem; margin: 1.2rem 0;
  overflow-wrap: anywhere; }
aside ul { margin: .3rem 0 0; padding-left: 1.2rem; }
.scroll, .stacked { overflow-x: auto; margin: 1.2rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; min-width: 50%; }
caption { text-align: left; font-weight: 600; padding-bottom: .5rem; position: sticky; left: 0;
  max-width: calc(100vw - 2rem); overflow-wrap: anywhere; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--faint); font-weight: 600; white-space: normal; vertical-align: bottom; }
tbody th { font-weight: 600; white-space: normal; min-width: 10rem; overflow-wrap: anywhere; }
tr { background: var(--page); } tbody tr:nth-child(even) { background: var(--stripe); }
.scroll th:first-child { position: sticky; left: 0; background: inherit; }
th:first-child, .words { text-align: left; }
td:last-child.words { white-space: normal; overflow-wrap: anywhere; min-width: 11rem; }
figure { margin: 1.5rem 0; } figcaption { color: var(--faint); font-size: .9rem; max-width: 46rem; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: .6rem;
  margin-bottom: .5rem; border: 1px solid var(--line); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr));
  gap: .8rem 2rem; margin: 1.2rem 0; }
.gallery h4 { margin: 0 0 .3rem; font-size: .9rem; }
.gallery ul { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: .5rem; margin: 0;
  padding: 0; list-style: none; font-size: .75rem; line-height: 1.3; }
.gallery span { display: block; overflow-wrap: anywhere; } .gallery span + span { color: var(--faint); }
.gallery img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; padding: 0; border: 0;
  border-radius: 3px; margin-bottom: .25rem; }
@media NARROW {
  .scroll tbody th { min-width: 9.5rem; font-size: .8rem; }
  .stacked table, .stacked tbody, .stacked tr, .stacked th, .stacked td { display: block; }
  .stacked thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .stacked caption { display: block; }
  .stacked tr { padding: .4rem .5rem .5rem; border-bottom: 1px solid var(--line); }
  .stacked tbody th, .stacked td { border: 0; padding: .1rem 0; white-space: normal; min-width: 0; }
  .stacked td { display: flex; justify-content: space-between; gap: 1.5rem; text-align: right; }
  .stacked td::before { content: attr(data-column); color: var(--faint); text-align: left; flex: none;
    max-width: 55%; }
  picture img { width: 100%; max-width: 26rem; padding: .3rem; }
}
@media print {
  @page { margin: 14mm; } body { font-size: 10pt; } main { max-width: none; padding: 0; }
  table { font-size: 7.5pt; } th, td { padding: .15rem .3rem; }
  th, td.words { white-space: normal; min-width: 0; }
  .scroll, .stacked { overflow: visible; } .scroll, .stacked, figure, aside, section { break-inside: avoid; }
  .scroll th:first-child, caption { position: static; } caption { max-width: none; }
  h1, h2, h3 { break-after: avoid; } img { border: 0; padding: 0; max-height: 230mm; }
}
""".replace("NARROW", _NARROW)
