"""The live status page: one HTML file without scripts or other files, which reloads itself."""

import time
from html import escape
from pathlib import Path

from hf_evidenceflow.atomic_write import atomic_write_text
from hf_evidenceflow.recipes.experiments.progress import STATES, Progress, RunProgress
from hf_evidenceflow.recipes.experiments.terminal import row_cells


# Shared with the report: readable on a phone (a table row becomes a card), in light and dark.
PAGE_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#d9dde3, #3a3f47); --soft: light-dark(#5b6470, #a4adb8);
  --card: light-dark(#f6f7f9, #1d2127); --finished: light-dark(#00694b, #4fd1a5);
  --running: light-dark(#0060a0, #67b7f0); --failed: light-dark(#b3261e, #ff8a80); --left: var(--soft); }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 1.2rem; max-width: 76rem;
  background: light-dark(#fff, #14171b); color: light-dark(#1b1f24, #e6e9ed); }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 70ch; } .soft { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .85rem; vertical-align: bottom; }
th, td { padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
.run { overflow-wrap: anywhere; }
@media (max-width: 720px) {
  thead { display: none; } table, tbody { display: block; }
  tr { display: block; background: var(--card); border-radius: .5rem; padding: .5rem .8rem; margin-bottom: .6rem; }
  td, td.number { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0;
    text-align: right; }
  td:empty { display: none; }
  td::before { content: attr(data-label); color: var(--soft); text-align: left; }
  td.run { font-weight: 600; text-align: left; } td.run::before { content: none; }
}
"""

_STATUS_STYLE = """
.counts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; padding: 0; list-style: none; }
.counts li { background: var(--card); border-radius: .5rem; padding: .4rem .9rem; min-width: 5.2rem; }
@media (max-width: 720px) {
  .counts { gap: .35rem; } .counts li { flex: 1; min-width: 0; padding: .35rem .5rem; font-size: .85rem; }
  .counts b { font-size: 1.2rem; }
  tr { display: grid; grid-template-columns: repeat(4, 1fr); gap: .2rem .8rem; }
  td, td.number { display: block; text-align: left; } td.run { grid-column: 1 / -1; }
  td::before { display: block; font-size: .75rem; }
}
.counts b { display: block; font-size: 1.5rem; line-height: 1.2; }
.bar { display: flex; height: .5rem; border-radius: .25rem; overflow: hidden; background: var(--line);
  margin-bottom: 1.2rem; }
.bar i { display: block; }
.note { color: var(--soft); font-size: .85rem; font-weight: 400; }
"""


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
    counts = progress.counts
    share = {state: 100 * counts[state] / max(counts["total"], 1) for state in STATES if state != "left"}
    bars = "".join(f'<i style="width:{s:.2f}%;background:var(--{state})"></i>' for state, s in share.items())
    words = {state: "done" if state == "finished" else state for state in counts}
    tiles = "".join(
        f'<li><b style="color:var(--{state}, inherit)">{counts[state]}</b>{words[state]}</li>' for state in counts
    )
    order = {"running": 0, "failed": 1, "finished": 2, "left": 3}
    rows = sorted(progress.rows, key=lambda row: order[row.state])
    columns = ["step", "train loss", *(name.replace("_", " ") for name in progress.metrics), "epoch"]
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in columns)
    body = "\n".join(_row(row, progress, columns) for row in rows)
    reload = f'<meta http-equiv="refresh" content="{max(1, round(refresh_seconds))}">' if refresh_seconds else ""
    when = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(progress.time))
    live = "live" if refresh_seconds else "the runner is not at work"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
{reload}<title>{counts["finished"]}/{counts["total"]} {escape(progress.name)}</title>
<style>{PAGE_STYLE}{_STATUS_STYLE}</style></head><body>
<h1>{escape(progress.name)}</h1>
<div class="soft">Last update {escape(when)}, {live}</div>
<ul class="counts">{tiles}</ul><div class="bar">{bars}</div>
<table><thead><tr><th>run</th><th>state</th>{head}<th class="number">last sign</th></tr></thead>
<tbody>
{body}
</tbody></table></body></html>
"""


def _row(row: RunProgress, progress: Progress, columns: list[str]) -> str:
    note = f'<div class="note">{escape(row.note)}</div>' if row.note else ""
    cells = "".join(
        f'<td class="number" data-label="{escape(name)}">{escape(text)}</td>'
        for name, text in zip(columns, row_cells(row, progress.metrics))
    )
    sign = _ago(progress.time - row.updated) if row.updated is not None else ""
    state = "done" if row.state == "finished" else row.state
    return (
        f'<tr><td class="run">{escape(row.id).replace(",", ",<wbr>")}{note}</td>'
        f'<td data-label="state" style="color:var(--{row.state})">{state}</td>{cells}'
        f'<td class="number" data-label="last sign">{sign}</td></tr>'
    )


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
