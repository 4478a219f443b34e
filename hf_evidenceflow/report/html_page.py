"""Self-contained HTML pages: one file, pictures inside it, no scripts, light and dark, readable on a phone."""

import base64
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --faint: #5c6670; --line: #d5dae0; --panel: #f4f6f8;
  --accent: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --ink: #e8eaed; --faint: #a3adb8; --line: #363d45; --panel: #1e2328; --accent: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p, li, figcaption { max-width: 46rem; overflow-wrap: anywhere; }
.faint, figcaption { color: var(--faint); font-size: .875rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { background: var(--panel); font-weight: 600; }
thead th { white-space: normal; vertical-align: bottom; }
tr > :first-child { text-align: left; position: sticky; left: 0; z-index: 1; background: var(--panel); }
tbody tr:last-child > * { border-bottom: 0; }
figure { margin: 1.25rem 0; }
figure img { display: block; background: #fff; max-width: 100%; height: auto; }
figcaption { margin-bottom: .25rem; }
"""


def html_page(title: str, body: Iterable[str], style: str = "") -> str:
    """
    A whole page.

    Args:
        title (`str`):
            Plain text; escaped here.
        body (`Iterable[str]`):
            Pieces of HTML, already escaped.
        style (`str`, *optional*, defaults to `""`):
            Further CSS.

    Returns:
        `str`: The page.
    """
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}{style}</style></head><body>",
            f"<main><h1>{html.escape(title)}</h1>",
            *body,
            "</main></body></html>",
            "",
        ]
    )


def html_picture(path: str | os.PathLike, caption: str, scale: float = 0.5) -> str:
    """
    A PNG as a figure of the page: as wide as it is, at most as the page, in a box that scrolls sideways where the
    screen is too narrow for it.

    Args:
        path (`str` or `os.PathLike`):
            PNG to put into the page.
        caption (`str`):
            Plain text above it, also read in place of it.
        scale (`float`, *optional*, defaults to `0.5`):
            Fewest pixels of the page for each pixel of the picture.

    Returns:
        `str`: HTML.
    """
    data = Path(path).read_bytes()
    width = int.from_bytes(data[16:20], "big")  # of the PNG's first chunk
    caption = html.escape(caption)
    source = base64.b64encode(data).decode("ascii")
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="scroll" tabindex="0">'
        f'<img alt="{caption}" width="{width}" style="min-width:{round(width * scale)}px" '
        f'src="data:image/png;base64,{source}"></div></figure>'
    )


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """
    A table whose first column stays in sight while it is scrolled.

    Args:
        columns (`Sequence[str]`):
            Headings; escaped here, as all cells.
        rows (`Iterable[Sequence[Any]]`):
            Cells: text, or numbers, shown with four digits; `None` and NaN as a dash.

    Returns:
        `str`: HTML.
    """
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value):
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
