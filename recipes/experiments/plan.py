"""Which runs of a grid are due: tuning runs first, then the seeds of each cell whose value is chosen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hf_evidenceflow.recipes.experiments.grid import Cell, Grid, RunSpec


@dataclass
class Plan:
    """
    The runs of a grid as far as they are known.

    Attributes:
        runs (`list[RunSpec]`):
            Runs that can be started or are done, tuning runs first.
        waiting (`list[RunSpec]`):
            Runs whose tuned value is not chosen yet; theirs is `None`.
        final (`set[str]`):
            Ids of the runs that count as results: those with the chosen value.
        chosen (`dict[str, Any]`):
            Chosen value by cell name; without tuning, `None` for each.
    """

    runs: list[RunSpec] = field(default_factory=list)
    waiting: list[RunSpec] = field(default_factory=list)
    final: set[str] = field(default_factory=set)
    chosen: dict[str, Any] = field(default_factory=dict)

    @property
    def all_runs(self) -> list[RunSpec]:
        return self.runs + self.waiting


def make_plan(grid: Grid, metrics_of: Callable[[RunSpec], Mapping[str, Any] | None]) -> Plan:
    """
    Plan the runs of a grid with what is finished so far; `metrics_of` gives a run's metrics if it is finished.

    The tuning run with the chosen value is the final run of its seed, unless tuning runs have options of their own.
    """
    plan = Plan()
    if grid.tune is None:
        plan.chosen = {cell.name: None for cell in grid.cells}
    else:
        for cells in _tuning_groups(grid):
            trials = {
                value: [grid.run(cell, grid.tune.seed, value, tuning=True) for cell in cells]
                for value in grid.tune.values
            }
            plan.runs += [run for runs in trials.values() for run in runs]
            metrics = {value: [metrics_of(run) for run in runs] for value, runs in trials.items()}
            if all(each is not None for found in metrics.values() for each in found):
                value = _best_value(grid, metrics)
                plan.chosen |= {cell.name: value for cell in cells}
    known = {run.id for run in plan.runs}
    for cell in grid.cells:
        for seed in grid.seeds:
            if cell.name in plan.chosen:
                run = grid.run(cell, seed, plan.chosen[cell.name])
                plan.final.add(run.id)
                if run.id not in known:
                    plan.runs.append(run)
            elif seed != grid.tune.seed or grid.tune.options:
                plan.waiting.append(grid.run(cell, seed))
    return plan


def at_the_edge(grid: Grid, value: Any) -> bool:
    """Whether a chosen value is the lowest or highest of those tried, so that a better one may lie beyond."""
    values = grid.tune.values
    if all(isinstance(each, (int, float)) for each in values):
        return value in (min(values), max(values))
    return False


def _tuning_groups(grid: Grid) -> list[list[Cell]]:
    axes = list(grid.axes) if grid.tune.per is None else grid.tune.per
    groups: dict[tuple, list[Cell]] = {}
    for cell in grid.cells:
        groups.setdefault(tuple(cell.levels[axis] for axis in axes), []).append(cell)
    return list(groups.values())


def _best_value(grid: Grid, metrics: Mapping[Any, list[Mapping[str, Any]]]) -> Any:
    sign = 1 if grid.tune.mode == "min" else -1

    def cost(value):
        for found in metrics[value]:
            if grid.tune.metric not in found:
                raise ValueError(
                    f"The runs of `{grid.recipe}` have no metric `{grid.tune.metric}` to tune by. They have "
                    f"{sorted(found)}."
                )
        # A diverged run ("nan" in run.json) is the worst, whichever way is better.
        mean = sign * sum(float(found[grid.tune.metric]) for found in metrics[value]) / len(metrics[value])
        return mean if not math.isnan(mean) else math.inf

    return min(metrics, key=cost)
