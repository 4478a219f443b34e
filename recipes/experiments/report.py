"""The report of an experiment: a table in Markdown, pictures, and one HTML page that holds both."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_evidenceflow.atomic_write import atomic_write_json, atomic_write_text
from hf_evidenceflow.recipes.experiments.grid import Grid, Tune
from hf_evidenceflow.recipes.experiments.plan import Plan
from hf_evidenceflow.recipes.experiments.plots import plot_curves, plot_differences
from hf_evidenceflow.recipes.experiments.runs import is_number
from hf_evidenceflow.recipes.experiments.summary import (
    EQUAL_TIME,
    EQUAL_TOKENS,
    CellSummary,
    Comparison,
    Summary,
    summarize,
)
from hf_evidenceflow.report.html import html_page, picture
from hf_evidenceflow.report.tables import markdown_table


def write_report(grid: Grid, plan: Plan, rows: Sequence[Mapping[str, Any]], output_dir: str | os.PathLike) -> Summary:
    """
    Write `report/` in an experiment's folder: `summary.json`, `table.md`, `differences.png`, `curves_<level>.png` and
    `report.html`, which holds them all.

    Args:
        grid ([`Grid`]):
            The grid.
        plan ([`Plan`]):
            Its runs.
        rows (`Sequence[Mapping]`):
            Rows of `results.jsonl`.
        output_dir (`str` or `os.PathLike`):
            Folder of the experiment.
    """
    folder = Path(output_dir) / "report"
    summary = summarize(grid, plan, rows, str(output_dir))
    atomic_write_json(folder / "summary.json", summary.content())
    atomic_write_text(folder / "table.md", report_markdown(summary))
    pictures = {}
    if (path := plot_differences(summary, folder / "differences.png")) is not None:
        pictures[path] = "Differences to the baseline, seed by seed, with 95 % t intervals of the mean over the seeds."
    for level, path in plot_curves(grid, rows, folder).items():
        where = "" if level == "all" else f" of {level}"
        pictures[path] = (
            f"Evaluation curves{where}: mean over the seeds, thin lines are single seeds. The range of the y axis is "
            "set by the last 60 % of the training."
        )
    atomic_write_text(folder / "report.html", report_html(summary, pictures))
    return summary


def report_markdown(summary: Summary) -> str:
    """The tables and notes of a report as Markdown."""
    lines = [f"# {summary.name}", "", _headline(summary), ""]
    for title, header, rows in _tables(summary):
        lines += [f"## {title}", "", markdown_table(header, rows, align="l"), ""]
    lines += ["## Missing", "", *(f"- {each}" for each in summary.missing or ["nothing"]), ""]
    lines += ["## How to read it", "", *(f"- {note}" for note in _notes(summary)), ""]
    return "\n".join(lines)


def report_html(summary: Summary, pictures: Mapping[Path, str]) -> str:
    """
    The report as one page that needs no other file.

    Args:
        summary ([`Summary`]):
            The results.
        pictures (`Mapping[Path, str]`):
            Caption by PNG.

    Returns:
        `str`: HTML.
    """
    return html_page(
        "experiment.html",
        title=summary.name,
        headline=_headline(summary),
        pictures=[picture(path, caption) for path, caption in pictures.items()],
        tables=_tables(summary),
        missing=summary.missing or ["nothing"],
        notes=_notes(summary),
    )


def _headline(summary: Summary) -> str:
    baseline = summary.baseline
    against = f", compared with {_levels(baseline)}" if baseline else ""
    return (
        f"{summary.finished} of {summary.total} runs of {summary.recipe} finished, seeds "
        f"{', '.join(map(str, summary.seeds))}{against}. Commit {', '.join(summary.git) or 'unknown'}."
    )


def _tables(summary: Summary) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table: one for each metric and group, then the samples."""
    tables = []
    groups = list(dict.fromkeys(cell.group for cell in summary.cells))
    for metric in summary.metrics:
        for group in groups:
            cells = [cell for cell in summary.cells if cell.group == group and metric in cell.metrics]
            if cells:
                title = ", ".join(filter(None, [metric, group]))
                tables.append((title, _header(summary), [_row(summary, cell, metric) for cell in cells]))
    if summary.samples:
        header = ["arm", "value", "samples x seeds", "difference [95 % bootstrap]", "p (McNemar)"]
        rows = [
            [
                ", ".join(filter(None, [each.group, each.arm])),
                each.column,
                f"{each.result.samples} x {each.seeds}",
                _interval(each.result.difference, each.result.low, each.result.high, signed=True),
                _p(each.result.p_value),
            ]
            for each in summary.samples
        ]
        tables.append(("Sample by sample", header, rows))
    return tables


def _header(summary: Summary) -> list[str]:
    header = ["arm", "seeds"]
    if summary.tuned:
        header.append(summary.tuned.option)
    header.append("mean [95 %]")
    if summary.baseline:
        for basis in ("equal tokens", "equal wall-clock"):
            header += [f"difference, {basis} [95 %]", "p (Holm)"]
        header.append("wall-clock budget")
    return header


def _row(summary: Summary, cell: CellSummary, metric: str) -> list[str]:
    value = cell.metrics[metric]
    row = [cell.arm or "all", f"{value.n} of {len(summary.seeds)}"]
    if summary.tuned:
        row.append(f"{cell.tuned_value}{' (edge!)' if cell.at_the_edge else ''}")
    row.append(_interval(value.mean, value.low, value.high))
    if not summary.baseline:
        return row
    if cell.is_baseline:
        return [*row, "baseline", "", "baseline", "", ""]
    found = {each.basis: each for each in summary.comparisons if each.cell == cell.cell and each.metric == metric}
    for basis in (EQUAL_TOKENS, EQUAL_TIME):
        row += _difference_cells(found.get(basis), len(summary.seeds))
    return [*row, _budget(found.get(EQUAL_TIME))]


def _difference_cells(comparison: Comparison | None, seeds: int) -> list[str]:
    if comparison is None:
        return ["none", ""]
    text = _interval(comparison.difference, comparison.low, comparison.high, signed=True)
    if len(comparison.seeds) < seeds:
        text += f" ({len(comparison.seeds)} of {seeds} seeds)"
    if comparison.same_tokens is False:
        text += " (tokens differ!)"
    p = _p(comparison.p_value)
    return [text, f"{p} ({_p(comparison.p_holm)})" if p else ""]


def _budget(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    shares = _range([100 * share for share in comparison.budget_share], " %")
    seconds = comparison.budget_seconds
    return f"{shares} of the baseline's" + (f", {_range(seconds, ' s')}" if seconds else "")


def _range(ends: Sequence[float], unit: str) -> str:
    low, high = (f"{end:.0f}" if end >= 10 else f"{end:.2g}" for end in ends)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _interval(value: float, low: float, high: float, signed: bool = False) -> str:
    form = "+.3g" if signed else ".4g"
    return f"{value:{form}}" + (f" [{low:{form}},\u00a0{high:{form}}]" if is_number(low) and is_number(high) else "")


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _counted(tuned: Tune) -> str:
    if tuned.options:
        return f"The runs that chose it had {json.dumps(tuned.options)} and count in no mean."
    return "This seed also counts in the mean where it is one of the seeds."


def _levels(levels: Mapping[str, str]) -> str:
    return ", ".join(f"{axis}={level}" for axis, level in levels.items())


def _notes(summary: Summary) -> list[str]:
    notes = ["Mean: over the seeds, with Student's t interval; no interval for a single seed."]
    if summary.baseline:
        notes += [
            "Difference: arm minus baseline, paired seed by seed over the seeds that both have, with its t interval; "
            "p of the paired t-test, in parentheses after Holm's correction over the arms of one table.",
            "The seeds are not bootstrapped: a few values cannot be resampled in a meaningful way.",
            "Equal tokens: the metrics at the end of the training.",
        ]
        clock = "the time that each run's log gives for training, without evaluation"
        if summary.clock == "relative_cost":
            clock = f"the steps times their given cost relative to the baseline, {json.dumps(summary.relative_cost)}"
        notes.append(
            f"Equal wall-clock: the clock is {clock}. The budget is the baseline's whole training, or the arm's where "
            "that is shorter; the curves are read there, linear in the logarithm of the position between two "
            "evaluations, without extrapolation."
        )
    if summary.tuned:
        tuned = summary.tuned
        notes.append(
            f"{tuned.option} was chosen from {tuned.values} by {tuned.metric} of seed {tuned.seed}, per "
            f"{', '.join(tuned.per) if tuned.per else 'cell'}. {_counted(tuned)} (edge!): the chosen value is the "
            "lowest or highest tried, a better one may lie beyond."
        )
    if summary.samples:
        notes.append(
            "Sample by sample: the bootstrap resamples samples, each averaged over the seeds; McNemar's exact test "
            "is on all pairs of sample and seed."
        )
    return notes
