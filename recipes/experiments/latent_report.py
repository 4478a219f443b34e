"""The report of the latent study: means by arm, contrasts of one arm with each control, tables and a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_evidenceflow.evaluation.statistics import Interval, mean_t_interval, paired_t_difference
from hf_evidenceflow.recipes.experiments.grid import Grid
from hf_evidenceflow.recipes.experiments.paired import SeedDifference, correct_family, paired_over_seeds
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table


# Their levels are further draws, as seeds are; the levels of other axes are compared with each other
DRAWS = ("rule",)
SECONDS, FORCED = "train_seconds", "forced"
ALPHA = 0.05

Runs = Mapping[tuple, Mapping[str, Any]]  # metrics by (rule, seed)


@dataclass
class ArmMeans:
    """
    An arm in a group of the grid.

    Args:
        group, arm (`str`):
            Levels of the axes that are compared, such as the number of moves; and the arm.
        values (`dict[str, dict[str, float]]`):
            By metric, the value of each run by its draw.
        means (`dict[str, Interval]`):
            By metric, the mean over the runs with its 95 % t interval.
    """

    group: str
    arm: str
    values: dict[str, dict[str, float]]
    means: dict[str, Interval]


@dataclass(kw_only=True)
class ControlContrast(SeedDifference):
    """
    The studied arm minus a control, or an arm minus itself under another metric, paired over the runs.

    Args:
        group, metric, first, second (`str`):
            The group; the metric of both; and what is taken from what: `second - first`.
        holm_low, holm_high (`float`):
            Ends of the t interval at the level that Holm's procedure tests the contrast at: `1 - .05 / (k - i)` for
            the contrast with the i-th smallest of k p-values, from 0.
    """

    group: str
    metric: str
    first: str
    second: str
    holm_low: float = math.nan
    holm_high: float = math.nan


def by_group(grid: Grid, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Runs]]:
    """Metrics by group, arm and draw, groups and arms in the order of the grid; tuning runs that lost are left out."""
    found: dict[str, dict[str, dict]] = {}
    for cell in sorted(grid.cells, key=lambda cell: list(grid.axes["arm"]).index(cell.levels["arm"])):
        for row in rows:
            if row["cell"] == cell.levels and row["final"]:
                draw = (*(level for axis, level in cell.levels.items() if axis in DRAWS), row["seed"])
                group = found.setdefault(group_of(cell.levels), {})
                group.setdefault(cell.levels["arm"], {})[draw] = row["metrics"]
    return found


def group_of(levels: Mapping[str, str]) -> str:
    """Name of the levels that are neither an arm nor a draw, such as `moves=8`."""
    return ", ".join(f"{axis}={level}" for axis, level in levels.items() if axis not in ("arm", *DRAWS))


def arm_means(grid: Grid, group: str, arm: str, runs: Runs) -> ArmMeans:
    """Means of the metrics that all runs of an arm have."""
    names = [name for name in (*grid.metrics, SECONDS) if all(name in metrics for metrics in runs.values())]
    values = {name: {_draw(draw): metrics[name] for draw, metrics in runs.items()} for name in names}
    return ArmMeans(group, arm, values, {name: mean_t_interval(list(each.values())) for name, each in values.items()})


def control_contrasts(grid: Grid, group: str, arms: Mapping[str, Runs]) -> list[ControlContrast]:
    """
    The grid's baseline arm minus each other arm, on the first metric and, where there is one, on `..._forced`; each
    metric is a family of its own for Holm's correction.
    """
    studied, found = grid.baseline["arm"], []
    own = arms.get(studied, {})
    for metric in [name for name in grid.metrics if name == grid.metrics[0] or title(name) == FORCED]:
        pairs = {
            arm: {draw: (runs[draw][metric], own[draw][metric]) for draw in own if draw in runs}
            for arm, runs in arms.items()
            if arm != studied
        }
        found += _family(group, metric, studied, {arm: pair for arm, pair in pairs.items() if pair})
    return found


def state_contrasts(grid: Grid, group: str, arm: str, runs: Runs) -> list[ControlContrast]:
    """An arm's first metric minus each of its others, such as the same weights with thinking off."""
    first, *others = grid.metrics
    pairs = {
        name: {draw: (metrics[name], metrics[first]) for draw, metrics in runs.items()}
        for name in others
        if title(name) != FORCED and all(name in metrics for metrics in runs.values())
    }
    return _family(group, first, arm, {f"{arm}, {title(name)}": each for name, each in pairs.items()})


def _family(group: str, metric: str, studied: str, pairs: Mapping[str, Mapping]) -> list[ControlContrast]:
    family = [
        ControlContrast(group=group, metric=metric, first=other, second=studied, **paired_over_seeds(each))
        for other, each in pairs.items()
    ]
    correct_family(family)
    tested = sorted((each for each in family if each.p_value is not None), key=lambda each: each.p_value)
    for place, each in enumerate(tested):
        level = 1 - ALPHA / (len(tested) - place)
        _, each.holm_low, each.holm_high, _ = paired_t_difference(*zip(*pairs[each.first].values()), level)
    return family


def title(metric: str) -> str:
    """A metric without its split: `off` of `test_off`."""
    return metric.partition("_")[2]


def report_markdown(
    grid: Grid, means: Sequence[ArmMeans], contrasts: Sequence[ControlContrast], states: Sequence[ControlContrast]
) -> str:
    """The report as Markdown."""
    split = grid.metrics[0].partition("_")[0]
    header = ("arm", "runs", *map(title, grid.metrics), "seconds")
    lines = [f"# {grid.name}", "", f"Means over the finished runs on the {split} problems, with 95 % t intervals."]
    for group in dict.fromkeys(each.group for each in means):
        rows = [
            (each.arm, len(each.values[SECONDS]), *(_mean(each, name) for name in grid.metrics), _seconds(each))
            for each in means
            if each.group == group
        ]
        lines += ["", *([f"## {group}", ""] if group else []), markdown_table(header, rows)]
    header = ("difference", "metric", "runs", "mean", "95 % interval", "p (Holm)", "interval at Holm's level")
    for heading, family in (("Against the controls", contrasts), ("Against itself", states)):
        rows = [
            (
                ", ".join(filter(None, (f"{each.second} - {each.first}", each.group))),
                title(each.metric),
                len(each.seeds),
                f"{each.difference:+.3f}",
                _ends(each.low, each.high),
                "" if each.p_holm is None else f"{each.p_holm:.1e}" if each.p_holm < 1e-3 else f"{each.p_holm:.3f}",
                _ends(each.holm_low, each.holm_high),
            )
            for each in family
        ]
        if rows:
            lines += ["", f"## {heading}", "", markdown_table(header, rows, align="llr")]
    first = grid.metrics[0]
    lines += ["", "## Each run", "", f"{title(first).capitalize()}, by {_draw_names(grid)}.", ""]
    for each in means:
        shown = ", ".join(f"{draw}: {value:.4f}" for draw, value in each.values.get(first, {}).items())
        lines.append(f"- {', '.join(filter(None, (each.arm, each.group)))}: {shown}")
    return "\n".join([*lines, "", "![accuracy](accuracy.png)", ""])


def _mean(each: ArmMeans, name: str) -> str:
    if name not in each.means:
        return ""
    mean = each.means[name]
    return f"{mean.value:.3f}" if math.isnan(mean.low) else f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]"


def _ends(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{low:+.3f}, {high:+.3f}]"


def _seconds(each: ArmMeans) -> str:
    return f"{each.means[SECONDS].value:.0f}"


def _draw(draw: tuple) -> str:
    return "/".join(map(str, draw))


def _draw_names(grid: Grid) -> str:
    return "/".join([*(axis for axis in grid.axes if axis in DRAWS), "seed"])


def plot_accuracy(grid: Grid, means: Sequence[ArmMeans], path: Path) -> Path:
    """
    Draw the metrics of each arm: side by side for a single group, else the first one over the groups, a line per arm.
    """
    groups = list(dict.fromkeys(each.group for each in means))
    arms = list(dict.fromkeys(each.arm for each in means))
    figure = new_figure((7.0, 1.4 + 0.34 * len(arms)) if len(groups) == 1 else (6.4, 4.0))
    panel = figure.subplots()
    if len(groups) == 1:
        _plot_arms(panel, grid, means)
        panel.set_yticks(range(len(arms)), arms)
        panel.set_ylim(len(arms) - 0.5, -0.5)
        panel.set_xlabel("accuracy, 95 % t interval; bars are single runs")
    else:
        _plot_groups(panel, grid, means, groups)
        panel.set_xticks(range(len(groups)), groups)
        panel.set_ylabel("accuracy, 95 % t interval")
    finish_panel(panel, grid.name)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save_figure(figure, path)


def _plot_arms(panel, grid: Grid, means: Sequence[ArmMeans]) -> None:
    for place, metric in enumerate(grid.metrics):
        color, marker = COLOURS[place % len(COLOURS)], "os^DvP"[place % 6]
        shown = [(y, each) for y, each in enumerate(means) if metric in each.means]
        for y, each in shown:
            y += 0.12 * (place - (len(grid.metrics) - 1) / 2)
            mean, runs = each.means[metric], each.values[metric].values()
            panel.plot(list(runs), [y] * len(runs), "|", color=color, alpha=0.5, markersize=4)
            panel.hlines(y, mean.low, mean.high, color=color, linewidth=1.4)
            panel.plot(mean.value, y, marker, color=color, markersize=4, label=title(metric) if y < 0.5 else None)


def _plot_groups(panel, grid: Grid, means: Sequence[ArmMeans], groups: Sequence[str]) -> None:
    metric = grid.metrics[0]
    for place, arm in enumerate(dict.fromkeys(each.arm for each in means)):
        shown = [each for each in means if each.arm == arm and metric in each.means]
        x = [groups.index(each.group) for each in shown]
        values = [each.means[metric] for each in shown]
        errors = [
            [mean.value - mean.low for mean in values],
            [mean.high - mean.value for mean in values],
        ]
        panel.errorbar(
            x,
            [mean.value for mean in values],
            yerr=errors,
            color=COLOURS[place % len(COLOURS)],
            marker="os^DvP"[place % 6],
            capsize=3,
            label=arm,
        )
