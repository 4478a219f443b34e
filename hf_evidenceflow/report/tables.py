"""Tables in Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


_RULES = {"l": "---", "r": "---:"}


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], align: str = "lr") -> str:
    """
    A table in Markdown, without a line break at its end.

    Args:
        columns (`Sequence[str]`):
            Headings.
        rows (`Iterable[Sequence[Any]]`):
            Cells, as Markdown; a pipe is escaped and a line break becomes a space, so no cell can break the table.
        align (`str`, *optional*, defaults to `"lr"`):
            `l` or `r` per column; the last letter also stands for all further columns.

    Returns:
        `str`: the table.

    Raises:
        ValueError: if a row has another number of cells than there are columns.

    Example:

    ```python
    >>> print(markdown_table(["arm", "loss"], [["mse", 2.5]]))
    | arm | loss |
    | --- | ---: |
    | mse | 2.5 |
    ```
    """
    rules = [_RULES[align[min(place, len(align) - 1)]] for place in range(len(columns))]
    lines = [[_cell(cell) for cell in cells] for cells in (columns, *rows)]
    if wrong := [cells for cells in lines if len(cells) != len(columns)]:
        raise ValueError(f"Each row needs {len(columns)} cells, as there are columns; got {wrong[0]}.")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (lines[0], rules, *lines[1:]))


def _cell(value: Any) -> str:
    return " ".join(str(value).replace("|", "\\|").splitlines())
