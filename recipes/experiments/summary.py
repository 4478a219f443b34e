"""The results of an experiment, put together: means per cell, comparisons with the baseline, and what is missing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_evidenceflow.evaluation.completion_log import read_jsonl
from hf_evidenceflow.evaluation.statistics import compare_samples, holm, mean_t_interval, paired_t_difference
from hf_evidenceflow.recipes.experiments.budgets import read_at_equal_time
from hf_evidenceflow.recipes.experiments.grid import Cell, Grid
from hf_evidenceflow.recipes.experiments.plan import Plan, at_the_edge
from hf_evidenceflow.recipes.experiments.runs import is_number


SAMPLES_NAME = "eval_samples.jsonl"
EQUAL_TOKENS, EQUAL_TIME = "equal_tokens", "equal_wall_clock"


def summarise(grid: Grid, plan: Plan, rows: Sequence[Mapping[str, Any]], output_dir: str) -> dict[str, Any]:
    """
    Summarise an experiment.

    Args:
        grid ([`Grid`]):
            The grid.
        plan ([`Plan`]):
            Its runs.
        rows (`Sequence[Mapping]`):
            Rows of `results.jsonl`.
        output_dir (`str`):
            Folder of the experiment, where values per sample are looked for.

    Returns:
        `dict`: Content of `summary.json`: `cells`, `comparisons`, `samples` and `missing`.
    """
    results = {cell.name: {} for cell in grid.cells}
    for row in rows:
        name = ",".join(f"{axis}={level}" for axis, level in row["cell"].items())
        if row["final"] and row["seed"] in grid.seeds and name in results:
            results[name][row["seed"]] = row
    missing = _missing(grid, results)
    comparisons, samples = [], []
    for cell in grid.cells:
        baseline = grid.baseline_of(cell)
        if baseline is None:
            if grid.baseline is not None and not grid.is_baseline(cell):
                missing.append(f"{cell.name}: not compared, as its baseline is not in the grid")
            continue
        seeds = [seed for seed in grid.seeds if seed in results[cell.name] and seed in results[baseline.name]]
        pairs = {seed: (results[baseline.name][seed], results[cell.name][seed]) for seed in seeds}
        for metric in grid.metrics:
            comparisons += _compare(grid, cell, baseline, metric, pairs)
        samples += _compare_samples(grid, cell, baseline, pairs, output_dir)
    _correct(comparisons)
    missing += _without_time(grid, comparisons)
    return {
        "name": grid.name,
        "recipe": grid.recipe,
        "metrics": grid.metrics,
        "seeds": grid.seeds,
        "baseline": grid.baseline,
        "tuned": None if grid.tune is None else vars(grid.tune),
        "clock": "relative_cost" if grid.relative_cost else "train_seconds",
        "relative_cost": grid.relative_cost,
        "git": sorted({str(row["git"]) for row in rows}),
        "finished": sum(map(len, results.values())),
        "total": len(grid.cells) * len(grid.seeds),
        "missing": missing,
        "cells": [_cell_summary(grid, plan, cell, results[cell.name]) for cell in grid.cells],
        "comparisons": comparisons,
        "samples": samples,
    }


def _cell_summary(grid: Grid, plan: Plan, cell: Cell, results: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    value = plan.chosen.get(cell.name)
    metrics = {}
    for metric in grid.metrics:
        values = {
            seed: row["metrics"][metric] for seed, row in results.items() if is_number(row["metrics"].get(metric))
        }
        if values:
            mean, low, high = mean_t_interval(list(values.values()))
            metrics[metric] = {"mean": mean, "low": low, "high": high, "n": len(values), "values": values}
    return {
        "cell": cell.levels,
        "group": grid.group(cell),
        "arm": grid.arm(cell),
        "is_baseline": grid.is_baseline(cell),
        "tuned_value": value,
        "at_the_edge": grid.tune is not None and value is not None and at_the_edge(grid, value),
        "metrics": metrics,
    }


def _compare(grid: Grid, cell: Cell, baseline: Cell, metric: str, pairs: Mapping[int, tuple]) -> list[dict[str, Any]]:
    tokens, time = {}, {}
    cost = None
    if grid.relative_cost is not None:
        (axis,) = grid.baseline
        cost = grid.relative_cost[cell.levels[axis]]
    for seed, (base, arm) in pairs.items():
        values = base["metrics"].get(metric), arm["metrics"].get(metric)
        if all(map(is_number, values)):
            tokens[seed] = values
        if (reading := read_at_equal_time(arm, base, metric, cost)) is not None:
            time[seed] = reading
    shared = {
        "cell": cell.levels,
        "baseline": baseline.levels,
        "group": grid.group(cell),
        "arm": grid.arm(cell),
        "metric": metric,
    }
    found = []
    if tokens:
        trained = [pair[side]["metrics"].get("train_tokens") for pair in pairs.values() for side in (0, 1)]
        found.append(shared | {"basis": EQUAL_TOKENS} | _difference(tokens) | {"same_tokens": len(set(trained)) == 1})
    if time:
        seconds = [reading.seconds for reading in time.values() if reading.seconds is not None]
        shares = [reading.share for reading in time.values()]
        found.append(
            shared
            | {"basis": EQUAL_TIME}
            | _difference({seed: (reading.baseline, reading.arm) for seed, reading in time.items()})
            | {
                "relative_cost": cost,
                "budget_seconds": [min(seconds), max(seconds)] if seconds else None,
                "budget_share": [min(shares), max(shares)],
            }
        )
    return found


def _difference(values: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    """Paired over the seeds; `values` are (baseline, arm)."""
    result = paired_t_difference(*zip(*values.values()))
    return {
        "seeds": list(values),
        "differences": {seed: arm - base for seed, (base, arm) in values.items()},
        "difference": result.value,
        "low": result.low,
        "high": result.high,
        "p_value": result.p_value,
    }


def _correct(comparisons: list[dict[str, Any]]) -> None:
    """Holm's correction over the arms of one group, for each metric and basis."""
    families: dict[tuple, list[dict[str, Any]]] = {}
    for comparison in comparisons:
        families.setdefault((comparison["group"], comparison["metric"], comparison["basis"]), []).append(comparison)
    for family in families.values():
        for comparison, corrected in zip(family, holm([each["p_value"] for each in family])):
            comparison["p_holm"] = corrected


def _compare_samples(grid: Grid, cell: Cell, baseline: Cell, pairs: Mapping, output_dir: str) -> list[dict[str, Any]]:
    tables = [[_samples(output_dir, row["id"]) for row in pair] for pair in pairs.values()]
    tables = [pair for pair in tables if all(pair)]
    columns = set.intersection(*(set(table) for pair in tables for table in pair)) if tables else set()
    found = []
    for column in sorted(columns):
        result = compare_samples([(base[column], arm[column]) for base, arm in tables])
        if result is not None:
            found.append(
                {"cell": cell.levels, "group": grid.group(cell), "arm": grid.arm(cell), "column": column}
                | {"seeds": len(tables)}
                | result._asdict()
            )
    return found


def _samples(output_dir: str, run: str) -> dict[str, dict[Any, float]]:
    """Value by sample id, by column."""
    columns: dict[str, dict[Any, float]] = {}
    for row in read_jsonl(Path(output_dir) / "runs" / run / SAMPLES_NAME):
        for name, value in row.items():
            if name != "id" and (isinstance(value, bool) or is_number(value)):
                columns.setdefault(name, {})[row["id"]] = float(value)
    return columns


def _missing(grid: Grid, results: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    missing = []
    for cell in grid.cells:
        rows = results[cell.name]
        name = cell.name or "the only cell"
        if absent := [seed for seed in grid.seeds if seed not in rows]:
            missing.append(f"{name}: no result of seed {', '.join(map(str, absent))}")
        for metric in grid.metrics:
            wrong = {seed: row["metrics"].get(metric) for seed, row in rows.items()}
            wrong = {seed: value for seed, value in wrong.items() if not is_number(value)}
            if wrong:
                listed = ", ".join(f"{'missing' if v is None else v} (seed {seed})" for seed, v in wrong.items())
                missing.append(f"{name}: {metric} is {listed}, left out")
    return missing


def _without_time(grid: Grid, comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    bases: dict[str, dict[str, list[int]]] = {}
    for comparison in comparisons:
        name = f"{comparison['metric']} of " + ",".join(f"{a}={level}" for a, level in comparison["cell"].items())
        bases.setdefault(name, {})[comparison["basis"]] = comparison["seeds"]
    return [
        f"{name}: at equal wall-clock only for seeds {found.get(EQUAL_TIME, [])} (no clock in the log, or the budget "
        "ends before the first evaluation)"
        for name, found in bases.items()
        if len(found.get(EQUAL_TIME, [])) < len(found.get(EQUAL_TOKENS, []))
    ]
