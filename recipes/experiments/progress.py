"""Where an experiment stands: the state and the latest numbers of each run."""

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from hf_evidenceflow.files import read_text
from hf_evidenceflow.recipes.experiments.grid import Grid
from hf_evidenceflow.recipes.experiments.plan import Plan
from hf_evidenceflow.recipes.experiments.runs import RunFiles, is_number


STATES = ("finished", "running", "left", "failed")


@dataclass
class RunProgress:
    """
    One run's state and latest numbers.

    Attributes:
        id (`str`):
            The run.
        state (`str`):
            One of `STATES`.
        note (`str`):
            Why a run is left or has failed.
        values (`dict[str, float]`):
            Latest `step`, `epoch`, `loss` and the grid's metrics.
        max_steps (`int`, *optional*):
            Steps of the whole run where the options say so.
        updated (`float`, *optional*):
            Time of the last sign, in seconds since the epoch.
    """

    id: str
    state: str
    note: str = ""
    values: dict[str, float] = field(default_factory=dict)
    max_steps: int | None = None
    updated: float | None = None


@dataclass
class Progress:
    """An experiment at one moment; made by [`collect_progress`]."""

    name: str
    metrics: list[str]
    rows: list[RunProgress]
    time: float

    @property
    def counts(self) -> dict[str, int]:
        counts = Counter(row.state for row in self.rows)
        return {"total": len(self.rows), **{state: counts[state] for state in STATES}}

    @property
    def summary(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items())


def collect_progress(
    grid: Grid, plan: Plan, output_dir: str, running: Collection[str], cache: dict[str, RunProgress]
) -> Progress:
    """
    Read where each run stands from its files. `running` has the ids of the runs that are going on; `cache` gets the
    finished ones, which do not change any more.
    """
    rows = []
    for spec in plan.all_runs:
        if spec.id not in cache:
            row = _read_row(grid, RunFiles(output_dir, spec), spec.id in running)
            if grid.tune is not None and spec.value is None:
                row.note = f"waits for the choice of {grid.tune.option}"
            rows.append(row)
            if row.state == "finished":
                cache[spec.id] = row
        else:
            rows.append(cache[spec.id])
    return Progress(grid.name, grid.metrics, rows, time.time())


def _read_row(grid: Grid, files: RunFiles, running: bool) -> RunProgress:
    max_steps = files.spec.options.get("max_steps")
    row = RunProgress(files.spec.id, "left", max_steps=max_steps if is_number(max_steps) and max_steps > 0 else None)
    record = files.record()
    if record is None and not running and not files.failure.exists():
        row.note = f"submitted as job {read_text(files.job).strip()}" if files.job.exists() else ""
        return row
    row.updated = files.last_sign()
    for entry in files.history():
        row.values |= {
            name: entry[name] for name in ("step", "epoch", "loss", *grid.metrics) if is_number(entry.get(name))
        }
    if running:
        row.state = "running"
    elif record is not None and record["status"] == "finished":
        row.state = "finished"
        metrics: dict[str, Any] = record.get("metrics", {})
        row.values |= {name: metrics[name] for name in grid.metrics if is_number(metrics.get(name))}
    elif failure := files.failed():
        lines = [line for line in failure["log_tail"] if line.strip()]
        row.state, row.note = "failed", f"exit code {failure['returncode']}: {lines[-1] if lines else 'no output'}"
    elif files.runs_elsewhere():
        row.state, row.note = "running", "not started by this runner"
    else:
        row.note = f"{record['status']}, to be resumed" if record is not None else ""
    return row
