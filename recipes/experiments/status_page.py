"""The live status page: one HTML file without scripts or other files, which reloads itself."""

import time
from pathlib import Path
from typing import Any

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.recipes.experiments.progress import Progress, RunProgress
from hf_evidenceflow.recipes.experiments.terminal import row_cells
from hf_evidenceflow.report.html import html_page


def write_status_page(progress: Progress, path: Path, refresh_seconds: float | None) -> None:
    """
    Write the status page.

    Args:
        progress ([`Progress`]):
            Snapshot of the experiment.
        path (`Path`):
            HTML file, replaced atomically.
        refresh_seconds (`float`, *optional*):
            How often the page reloads; `None` when nothing runs any more.
    """
    atomic_write_text(path, status_html(progress, refresh_seconds))


def status_html(progress: Progress, refresh_seconds: float | None) -> str:
    """The page of [`write_status_page`] as text."""
    order = {"running": 0, "failed": 1, "finished": 2, "left": 3}
    rows = sorted(progress.rows, key=lambda row: order[row.state])
    return html_page(
        "status.html",
        title=progress.name,
        refresh=max(1, round(refresh_seconds)) if refresh_seconds else None,
        updated=time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(progress.time)),
        counts=progress.counts,
        columns=["step", "train loss", *(name.replace("_", " ") for name in progress.metrics), "epoch", "last sign"],
        rows=[_row(row, progress) for row in rows],
    )


def _row(row: RunProgress, progress: Progress) -> dict[str, Any]:
    sign = "" if row.updated is None else _ago(progress.time - row.updated)
    return {"id": row.id, "note": row.note, "state": row.state, "cells": [*row_cells(row, progress.metrics), sign]}


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
