"""Self-contained HTML pages: one file, pictures inside it, no scripts, light and dark, readable on a phone.

A page is a template of `templates/` that extends `page.html`, which has the one style sheet; `macros.html` has tables
and figures. All values are escaped, and the content policy of the page forbids whatever is not in the file.
"""

import base64
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined


class Picture(NamedTuple):
    """
    A PNG in a page, made by [`picture`]: its caption, its content as a `data:` address, its width in pixels.
    """

    caption: str
    source: str
    width: int


def picture(path: str | os.PathLike, caption: str) -> Picture:
    """Read a PNG for the macro `figure`, which shows it under its caption, at most as wide as it is."""
    data = Path(path).read_bytes()
    width = int.from_bytes(data[16:20], "big")  # of the PNG's first chunk
    return Picture(caption, f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}", width)


def html_page(template: str, **values: Any) -> str:
    """
    A whole page.

    Args:
        template (`str`):
            File of `templates/`, such as `"probe.html"`.
        **values (`Any`):
            What the template names; a missing one is a `jinja2.UndefinedError`. Text is escaped.

    Returns:
        `str`: the page.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hf_evidenceflow.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    return environment


def _cell(value: Any) -> str:
    """Text as it is, numbers with four digits, `None` and NaN as a dash."""
    if value is None or value != value:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
