"""A table of prompts, completions and rewards for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def samples_table(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    golds: Sequence[Any] | None = None,
    extracted: Sequence[Any] | None = None,
    rewards: Sequence[float] | None = None,
    title: str | None = None,
    max_prompt_chars: int = 160,
    max_completion_chars: int = 800,
) -> Table:
    """
    Lay out samples as a table that wraps to the terminal.

    Args:
        prompts (`Sequence`):
            Prompts, texts or chats (lists of messages, of which the last one is shown). Only the end is shown.
        completions (`Sequence`):
            Completions, texts or chats. Of a long one the beginning and the end are shown.
        golds (`Sequence`, *optional*):
            Right answers.
        extracted (`Sequence`, *optional*):
            Answers read out of the completions; `None` for one that could not be read.
        rewards (`Sequence[float]`, *optional*):
            Rewards; a row with one above 0 is green.
        title (`str`, *optional*):
            Title of the table.
        max_prompt_chars (`int`, *optional*, defaults to `160`):
            Characters shown of a prompt.
        max_completion_chars (`int`, *optional*, defaults to `800`):
            Characters shown of a completion.

    Returns:
        [`~rich.table.Table`]: The table.

    Example:

    ```python
    >>> samples_table(["What is 2 + 3?"], ["5\\n#### 5"], golds=["5"], extracted=["5"], rewards=[1.0])
    ```
    """
    optional = {"gold": golds, "extracted": extracted, "reward": rewards}
    columns = {"prompt": prompts, "completion": completions}
    columns |= {name: values for name, values in optional.items() if values is not None}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"All columns of a sample table need the same number of rows, got {lengths}.")

    table = Table(title=title, show_lines=True, expand=True)
    table.add_column("prompt", ratio=3, overflow="fold", style="dim")
    table.add_column("completion", ratio=4, overflow="fold")
    for name in list(columns)[2:]:
        table.add_column(name, justify="right", overflow="fold", min_width=len(name))
    for row in zip(*columns.values()):
        cells = dict(zip(columns, row))
        shown = [
            _printable("…", _text_of(cells["prompt"]), max_prompt_chars, head=0),
            _printable(" … ", _text_of(cells["completion"]), max_completion_chars, head=max_completion_chars // 4),
        ]
        shown += [_cell(cells[name]) for name in list(columns)[2:]]
        table.add_row(*shown, style="green" if (cells.get("reward") or 0) > 0 else None)
    return table


def print_samples(*args: Any, console: Console | None = None, **kwargs: Any) -> None:
    """Print a [`samples_table`] with these arguments to `console`, by default standard output."""
    (console or Console()).print(samples_table(*args, **kwargs))


def _text_of(value: Any) -> str:
    return str(value[-1].get("content", "")) if isinstance(value, list) and value else str(value)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("none", style="red")
    return _printable("…", f"{value:.3g}" if isinstance(value, float) else str(value), 60, head=60)


def _printable(gap: str, text: str, limit: int, head: int) -> Text:
    text = text.strip()
    if len(text) > limit:
        tail = limit - head
        text = text[:head].rstrip() + gap + (text[-tail:].lstrip() if tail else "")
    # `Text`, not `str`, since brackets in a completion are not markup; a model can write terminal escapes, too.
    return Text("".join(char if char.isprintable() or char == "\n" else "·" for char in text))
