"""Report as one self-contained HTML file."""

import base64
import hashlib
import html
import io
import os
import re
from collections.abc import Iterable
from importlib.resources import files
from itertools import takewhile

from PIL import Image

from aid.utils.text import one_line, visible

from .parts import Heading, Part, ReportFigure, Table, TableCell, Text

__all__ = ["to_html"]

# Figures with more pixels are reduced to 256 colors, which makes the file about 4 times smaller and
# keeps boxes and labels sharp.
FULL_COLOR_PIXELS = 1_500_000

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{lead}
<nav aria-label="Contents">
<ul>
{contents}
</ul>
</nav>
{introduction}
{sections}
</main>
<script>{script}</script>
</body>
</html>
"""


def to_html(title: str, parts: list[Part], folder: str) -> str:
    """Write a report, with its figures embedded, as one HTML page.

    The content security policy of the page forbids all external resources and every script or style
    other than its own. Paragraphs before the first table, figure or heading are placed above the
    table of contents.

    Args:
        title: title of the page.
        parts: content.
        folder: folder with the image files.
    """
    style, script = (
        files(__package__).joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js")
    )
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    introduction, sections = _sections(parts)
    lead = list(takewhile(lambda part: isinstance(part, Text), introduction))
    return PAGE.format(
        policy=policy,
        title=_escape(title),
        style=style,
        script=script,
        lead=f'<div class="lead">\n{_write_all(lead, folder)}\n</div>' if lead else "",
        contents="\n".join(
            f'<li><a href="#section-{i}">{_escape(name)}</a></li>'
            for i, (name, _) in enumerate(sections)
        ),
        introduction=_write_all(introduction[len(lead) :], folder),
        sections="\n".join(
            f'<section aria-labelledby="section-{i}">\n<h2 id="section-{i}">{_escape(name)}</h2>\n'
            f"{_write_all(content, folder)}\n</section>"
            for i, (name, content) in enumerate(sections)
        ),
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _sections(parts: list[Part]) -> tuple[list[Part], list[tuple[str, list[Part]]]]:
    """Split into the parts before the first heading and [(heading, its parts)]."""
    introduction, sections = [], []
    for part in parts:
        if isinstance(part, Heading):
            sections.append((part.text, []))
        else:
            (sections[-1][1] if sections else introduction).append(part)
    return introduction, sections


def _write_all(parts: list[Part], folder: str) -> str:
    return "\n".join(_write(part, folder) for part in parts)


def _write(part: Part, folder: str) -> str:
    match part:
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Table():
            return _write_table(part)
        case ReportFigure(file, alt, caption):
            source = _data_uri(os.path.join(folder, file))
            image = f'<img src="{source}" alt="{_escape(alt)}">'
            return (
                f"<figure>\n{_scrollable(image)}\n"
                f"<figcaption>{_inline(caption)}</figcaption>\n</figure>"
            )


def _scrollable(content: str) -> str:
    """Wrap wide content in an element that scrolls by itself and can take the keyboard focus."""
    return (
        '<div class="wide" role="group" aria-label="scrolls sideways" tabindex="0">\n'
        f"{content}\n</div>"
    )


def _escape(text: str) -> str:
    return html.escape(visible(text))


def _inline(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", _escape(one_line(text)))


def _write_table(table: Table) -> str:
    header = "".join(
        f'<th scope="col"{_number_class(row[i] for row in table.rows)}>{_escape(name)}</th>'
        for i, name in enumerate(table.header)
    )
    rows = "\n".join(
        f'<tr><th scope="row">{_escape(first.text)}</th>{"".join(map(_write_cell, rest))}</tr>'
        for first, *rest in table.rows
    )
    return _scrollable(
        f'<table class="sortable">\n<caption>{_escape(table.caption)}</caption>\n'
        f"<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"
    )


def _write_cell(cell: TableCell) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    return f"<td{_number_class([cell])}{value}>{_escape(cell.text)}</td>"


def _number_class(cells: Iterable[TableCell]) -> str:
    return ' class="number"' if any(cell.value is not None for cell in cells) else ""


def _data_uri(path: str) -> str:
    with open(path, "rb") as f:
        content = f.read()
    with Image.open(path) as image:
        if image.width * image.height > FULL_COLOR_PIXELS:
            buffer = io.BytesIO()
            # The palette of the default method may miss the few pixels of a thin box.
            reduced = image.convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
            reduced.save(buffer, "PNG", optimize=True)
            content = buffer.getvalue()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
