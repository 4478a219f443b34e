"""The pictures of a report: differences to the baseline with their intervals, and evaluation curves."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_evidenceflow.recipes.experiments.grid import Grid
from hf_evidenceflow.recipes.experiments.runs import is_number
from hf_evidenceflow.recipes.experiments.summary import EQUAL_TIME, EQUAL_TOKENS, Summary
from hf_evidenceflow.report import figures
from hf_evidenceflow.report.curves import KNOWN_CURVES
from hf_evidenceflow.report.figures import finish_panel, new_figure, save_figure


# Black is the first arm; the marker and the line carry the rest when there are more arms than colors.
COLOURS = ("#000000", *figures.COLOURS)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
# Share of a curve, from its start, that does not decide the range of the y axis: it falls too steeply there.
STEEP_SHARE = 0.4
# Evaluations of a run below which there is no curve to draw
LEAST_POINTS = 3
PANELS_IN_A_ROW = 3  # more are too small to read on a page


def plot_differences(summary: Summary, path: Path) -> Path | None:
    """
    Draw the differences to the baseline, at equal tokens and at equal wall-clock, one panel per metric.

    Args:
        summary ([`Summary`]):
            The results.
        path (`Path`):
            PNG to write.

    Returns:
        `Path` or `None`: The path; `None` if there is nothing to compare.
    """
    comparisons = summary.comparisons
    if not comparisons:
        return None
    labels = list(dict.fromkeys((each.group, each.arm) for each in comparisons))
    metrics = [name for name in summary.metrics if any(each.metric == name for each in comparisons)]
    figure, panels = _figure(len(metrics), width=3.6, height=1.5 + 0.36 * len(labels), extra_width=2.2, sharey=True)
    styles = {
        EQUAL_TOKENS: ("equal tokens", COLOURS[1], "o", -0.14),
        EQUAL_TIME: ("equal wall-clock", COLOURS[2], "s", 0.14),
    }
    for panel, metric in zip(panels, metrics):
        panel.axvline(0, color="0.3", linewidth=0.9)
        for each in comparisons:
            if each.metric != metric:
                continue
            _, color, marker, offset = styles[each.basis]
            y = labels.index((each.group, each.arm)) + offset
            panel.plot(list(each.differences.values()), [y] * len(each.seeds), "|", color=color, alpha=0.6)
            if is_number(each.low):
                panel.hlines(y, each.low, each.high, color=color, linewidth=1.6)
            panel.plot(each.difference, y, marker, color=color, markersize=5)
        for index in range(1, len(labels)):
            if labels[index][0] != labels[index - 1][0]:
                panel.axhline(index - 0.5, color="0.75", linewidth=0.8)
        finish_panel(panel, metric, x="difference to the baseline")
        panel.xaxis.get_major_locator().set_params(nbins=5)
    panels[0].set_yticks(range(len(labels)), [", ".join(filter(None, label)) for label in labels])
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    drawn = [style for basis, style in styles.items() if any(each.basis == basis for each in comparisons)]
    handles = [
        panels[0].plot([], [], marker=marker, color=color, linewidth=1.6, label=label)[0]
        for label, color, marker, _ in drawn
    ]
    handles.append(panels[0].plot([], [], "|", color=drawn[0][1], label="one seed")[0])
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return save_figure(figure, path)


def plot_curves(grid: Grid, rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Path]:
    """
    Draw the evaluation curves, one picture for each level of the first axis, the arms laid over each other. Where no
    run was evaluated often enough for a curve, the last values are drawn, a line of the picture for each arm.

    Args:
        grid ([`Grid`]):
            The grid.
        rows (`Sequence[Mapping]`):
            Rows of `results.jsonl`.
        folder (`Path`):
            Folder for `curves_<level>.png`.

    Returns:
        `dict[str, Path]`: Path by level; a level without curves has none.
    """
    rows = [row for row in rows if row["final"]]
    first = next(iter(grid.axes), None)
    if first is None or len(grid.axes) == 1:
        groups = {"all": rows}
    else:
        groups = {level: [row for row in rows if row["cell"].get(first) == level] for level in grid.axes[first]}
    # The same arm looks the same in all pictures.
    arms = list(dict.fromkeys(_arm(grid, cell.levels) for cell in sorted(grid.cells, key=_baseline_first(grid))))
    paths = {}
    for level, group in groups.items():
        metrics = [name for name in grid.metrics if any(_points(row, name, "step") for row in group)]
        if metrics:
            longest = max(len(_points(row, name, "step")) for row in group for name in metrics)
            draw = _plot_level if longest >= LEAST_POINTS else _plot_last_values
            paths[level] = draw(grid, level, group, metrics, arms, folder / f"curves_{level}.png")
    return paths


def _plot_last_values(grid, level, rows, metrics, arms, path):
    shown = [arm for arm in arms if any(_arm(grid, row["cell"]) == arm for row in rows)]
    figure, panels = _figure(len(metrics), width=3.6, height=1.6 + 0.28 * len(shown), extra_width=1.6, sharey=True)
    for panel, metric in zip(panels, metrics):
        for place, arm in enumerate(shown):
            curves = [_points(row, metric, "step") for row in rows if _arm(grid, row["cell"]) == arm]
            values = [curve[max(curve)] for curve in curves if curve]
            panel.plot(values, [place] * len(values), "|", color=COLOURS[1], markersize=9)
            if values:
                panel.plot(np.mean(values), place, "o", color=COLOURS[0], markersize=5)
        finish_panel(panel, metric, x=_unit(metric))
        panel.xaxis.get_major_locator().set_params(nbins=5)
    panels[0].set_yticks(range(len(shown)), shown)
    panels[0].set_ylim(len(shown) - 0.5, -0.5)
    handles = [
        panels[0].plot([], [], "o", color=COLOURS[0], label="mean over the seeds")[0],
        panels[0].plot([], [], "|", color=COLOURS[1], markersize=9, label="one seed")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    _headline(figure, grid, level, ": at the end of the training")
    return save_figure(figure, path)


def _plot_level(grid, level, rows, metrics, arms, path):
    figure, panels = _figure(len(metrics), width=4.4, height=3.6 + 0.22 * (len(arms) // 3))
    in_tokens = all("train_tokens" in entry for row in rows for entry in row["evals"])
    position = "train_tokens" if in_tokens else "step"
    drawn = [row for row in rows if any(_points(row, metric, position) for metric in metrics)]
    shown = [arm for arm in arms if any(_arm(grid, row["cell"]) == arm for row in drawn)]
    for panel, metric in zip(panels, metrics):
        heights = []
        for arm in shown:
            curves = [_points(row, metric, position) for row in rows if _arm(grid, row["cell"]) == arm]
            style = look(arms.index(arm))
            for curve in curves:
                panel.plot(list(curve), list(curve.values()), color=style["color"], alpha=0.25, linewidth=0.7)
                after = STEEP_SHARE * max(curve, default=0)
                heights += [value for where, value in curve.items() if where >= after]
            # The mean only where all seeds have a value, else it would jump.
            shared = sorted(set.intersection(*map(set, curves)))
            means = [np.mean([curve[where] for curve in curves]) for where in shared]
            panel.plot(shared, means, linewidth=1.7, markersize=4, markevery=max(1, len(shared) // 6), **style)
        if heights:
            margin = 0.05 * (max(heights) - min(heights)) or 0.05
            panel.set_ylim(min(heights) - margin, max(heights) + margin)
        finish_panel(panel, metric, "training tokens" if in_tokens else "optimizer step", _unit(metric))
        panel.xaxis.get_major_locator().set_params(nbins=6)
    handles = [panels[0].plot([], [], label=arm, markersize=4, **look(arms.index(arm)))[0] for arm in shown]
    columns = max(1, min(len(handles), min(len(metrics), PANELS_IN_A_ROW) * 2))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, handlelength=3.2, frameon=False, fontsize=9
    )
    _headline(figure, grid, level)
    return save_figure(figure, path)


def _headline(figure, grid: Grid, level: str, end: str = "") -> None:
    name = f"{grid.name}: {level}" if level != "all" else grid.name
    figure.suptitle(name + end, fontsize=12, x=0.02, ha="left")


def _unit(metric: str) -> str:
    return KNOWN_CURVES[metric][1] if metric in KNOWN_CURVES else metric.removeprefix("eval_").replace("_", " ")


def _figure(count: int, width: float, height: float, extra_width: float = 0.4, sharey: bool = False):
    """A figure of so many panels, at most three in a row, and the panels."""
    columns, rows = min(count, PANELS_IN_A_ROW), math.ceil(count / PANELS_IN_A_ROW)
    figure = new_figure((width * columns + extra_width, height * rows))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=sharey).ravel()
    for panel in panels[count:]:
        panel.set_visible(False)
    return figure, panels[:count]


def look(index: int) -> dict[str, Any]:
    """Colour, line and marker of the arm with this number."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": figures.LINE_STYLES[(index // len(COLOURS)) % len(figures.LINE_STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def _arm(grid: Grid, levels: Mapping[str, str]) -> str:
    names = [level for axis, level in levels.items() if axis != next(iter(grid.axes)) or len(grid.axes) == 1]
    return ", ".join(names) or "all runs"


def _baseline_first(grid: Grid):
    return lambda cell: not grid.is_baseline(cell)


def _points(row: Mapping[str, Any], metric: str, position: str) -> dict[float, float]:
    return {
        entry[position]: entry[metric] for entry in row["evals"] if position in entry and is_number(entry.get(metric))
    }
