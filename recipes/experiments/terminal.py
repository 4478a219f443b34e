"""The experiment's progress in the terminal: a live table, or plain lines where there is no terminal."""

import time

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hf_evidenceflow.recipes.experiments.progress import Progress, RunProgress


COLOURS = {"finished": "green", "running": "cyan", "left": "dim", "failed": "red"}
PLAIN_SECONDS = 60.0


class Terminal:
    """
    Where a runner writes; used as `with Terminal() as terminal`.

    Args:
        console (`rich.console.Console`, *optional*):
            Console to write to. If not given, standard output.
    """

    def __init__(self, console: Console | None = None):
        self.console = console or Console()
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._last_summary = ("", 0.0)

    def __enter__(self):
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception):
        if self._live is not None:
            self._live.stop()

    def line(self, text: str) -> None:
        """Write a line that stays."""
        self.console.print(Text(text), soft_wrap=True)

    def update(self, progress: Progress) -> None:
        """Show where the experiment stands; without a terminal, its counts when they change or once a minute."""
        if self._live is not None:
            self._live.update(progress_table(progress, self.console.height), refresh=True)
            return
        earlier, when = self._last_summary
        if progress.summary != earlier or time.monotonic() - when > PLAIN_SECONDS:
            self.line(f"{time.strftime('%H:%M:%S')}  {progress.summary}")
            self._last_summary = (progress.summary, time.monotonic())


def progress_table(progress: Progress, height: int) -> Table:
    """
    The runs as a table that fits a terminal of `height` lines: running ones first, then failed, then the newest
    finished ones.
    """
    table = Table(title=f"{progress.name}: {progress.summary}", title_justify="left", box=None, pad_edge=False)
    table.add_column("run", overflow="fold")
    for name in ("state", "step", "train loss", *progress.metrics, "epoch"):
        table.add_column(name.replace("_", " "), justify="left" if name == "state" else "right")
    order = {"running": 0, "failed": 1, "finished": 2, "left": 3}
    rows = sorted(progress.rows, key=lambda row: (order[row.state], -(row.updated or 0)))
    for row in rows[: max(3, height - 5)]:
        table.add_row(Text(row.id), Text(row.state, style=COLOURS[row.state]), *row_cells(row, progress.metrics))
    return table


def row_cells(row: RunProgress, metrics: list[str]) -> list[str]:
    """Step, loss, metrics and epoch of a run as text, empty where there is no value yet."""
    step = row.values.get("step")
    steps = "" if step is None else f"{step:.0f}" + (f"/{row.max_steps}" if row.max_steps else "")
    numbers = [row.values.get(name) for name in ("loss", *metrics, "epoch")]
    return [steps, *("" if number is None else f"{number:.4g}" for number in numbers)]
