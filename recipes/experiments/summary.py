"""The results of an experiment, put together: means per cell, comparisons with the baseline, and what is missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_evidenceflow.evaluation.completion_log import read_jsonl
from hf_evidenceflow.evaluation.statistics import SampleComparison, compare_samples, mean_t_interval
from hf_evidenceflow.recipes.experiments.budgets import read_at_equal_time
from hf_evidenceflow.recipes.experiments.grid import Cell, Grid, Tune
from hf_evidenceflow.recipes.experiments.paired import SeedDifference, correct_family, paired_over_seeds
from hf_evidenceflow.recipes.experiments.plan import Plan, at_the_edge
from hf_evidenceflow.recipes.experiments.runs import is_number


SAMPLES_NAME = "eval_samples.jsonl"
EQUAL_TOKENS, EQUAL_TIME = "equal_tokens", "equal_wall_clock"

Rows = Mapping[int, Mapping[str, Any]]  # result row by seed
Pairs = Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]]  # result rows of baseline and arm by seed


@dataclass
class SeedMean:
    """Mean over the seeds with its t interval (`nan` ends for one seed), the number of seeds, and value by seed."""

    mean: float
    low: float
    high: float
    n: int
    values: dict[int, float]


@dataclass
class CellSummary:
    """
    One variant.

    Args:
        cell (`dict[str, str]`):
            Level by axis.
        group, arm (`str`):
            As of [`Grid`]: what stays equal in a comparison, and what is compared.
        is_baseline (`bool`):
            Whether others are compared with it.
        tuned_value (`Any`):
            Chosen value of the tuned option; `None` without tuning.
        at_the_edge (`bool`):
            Whether that is the lowest or highest value tried.
        metrics (`dict[str, SeedMean]`):
            Mean by metric, of those that a seed has.
    """

    cell: dict[str, str]
    group: str
    arm: str
    is_baseline: bool
    tuned_value: Any
    at_the_edge: bool
    metrics: dict[str, SeedMean]


@dataclass(kw_only=True)
class Comparison(SeedDifference):
    """
    A cell against its baseline in one metric.

    Args:
        cell, baseline (`dict[str, str]`):
            Levels of the two.
        group, arm, metric (`str`):
            Where it stands in the tables.
        basis (`str`):
            `EQUAL_TOKENS` (the ends of the training) or `EQUAL_TIME`.
        differences (`dict[int, float]`):
            Arm minus baseline by seed.
        same_tokens (`bool`, *optional*):
            At equal tokens: whether all runs trained on as many.
        relative_cost (`float`, *optional*):
            At equal wall-clock: the cost of a step that was given.
        budget_seconds, budget_share (`list[float]`, *optional*):
            At equal wall-clock: lowest and highest budget, in seconds where there is a clock, and as a share of the
            baseline's training.
    """

    cell: dict[str, str]
    baseline: dict[str, str]
    group: str
    arm: str
    metric: str
    basis: str
    differences: dict[int, float]
    same_tokens: bool | None = None
    relative_cost: float | None = None
    budget_seconds: list[float] | None = None
    budget_share: list[float] | None = None


@dataclass
class SamplesOfArm:
    """A cell against its baseline, sample by sample, in one column of the samples' files, over `seeds` seeds."""

    cell: dict[str, str]
    group: str
    arm: str
    column: str
    seeds: int
    result: SampleComparison


@dataclass
class Summary:
    """
    What an experiment came to.

    Args:
        name, recipe, metrics, seeds, baseline, relative_cost:
            Of the [`Grid`].
        tuned ([`Tune`], *optional*):
            Of the grid.
        clock (`str`):
            `"relative_cost"` or `"train_seconds"`: the clock of the comparisons at equal wall-clock.
        git (`list[str]`):
            Commits of the runs.
        finished, total (`int`):
            Final runs.
        missing (`list[str]`):
            What is missing or was left out, as sentences.
        cells, comparisons, samples:
            The results.
    """

    name: str
    recipe: str
    metrics: list[str]
    seeds: list[int]
    baseline: dict[str, str] | None
    tuned: Tune | None
    clock: str
    relative_cost: dict[str, float] | None
    git: list[str]
    finished: int
    total: int
    missing: list[str]
    cells: list[CellSummary] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    samples: list[SamplesOfArm] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """Content of `summary.json`."""
        samples = [vars(each) | each.result._asdict() for each in self.samples]
        for entry in samples:
            del entry["result"]
        return vars(self) | {"samples": samples}


def summarize(grid: Grid, plan: Plan, rows: Sequence[Mapping[str, Any]], output_dir: str) -> Summary:
    """
    Summarize an experiment.

    Args:
        grid ([`Grid`]):
            The grid.
        plan ([`Plan`]):
            Its runs.
        rows (`Sequence[Mapping]`):
            Rows of `results.jsonl`.
        output_dir (`str`):
            Folder of the experiment, where values per sample are looked for.
    """
    results: dict[str, dict[int, Mapping[str, Any]]] = {cell.name: {} for cell in grid.cells}
    for row in rows:
        name = ",".join(f"{axis}={level}" for axis, level in row["cell"].items())
        if row["final"] and row["seed"] in grid.seeds and name in results:
            results[name][row["seed"]] = row
    summary = Summary(
        name=grid.name,
        recipe=grid.recipe,
        metrics=grid.metrics,
        seeds=grid.seeds,
        baseline=grid.baseline,
        tuned=grid.tune,
        clock="relative_cost" if grid.relative_cost else "train_seconds",
        relative_cost=grid.relative_cost,
        git=sorted({str(row["git"]) for row in rows}),
        finished=sum(map(len, results.values())),
        total=len(grid.cells) * len(grid.seeds),
        missing=_missing(grid, results),
        cells=[_cell_summary(grid, plan, cell, results[cell.name]) for cell in grid.cells],
    )
    for cell in grid.cells:
        baseline = grid.baseline_of(cell)
        if baseline is None:
            if grid.baseline is not None and not grid.is_baseline(cell):
                summary.missing.append(f"{cell.name}: not compared, as its baseline is not in the grid")
            continue
        seeds = [seed for seed in grid.seeds if seed in results[cell.name] and seed in results[baseline.name]]
        pairs = {seed: (results[baseline.name][seed], results[cell.name][seed]) for seed in seeds}
        for metric in grid.metrics:
            summary.comparisons += _compare(grid, cell, baseline, metric, pairs)
        summary.samples += _compare_samples(grid, cell, pairs, output_dir)
    _correct(summary.comparisons)
    summary.missing += _without_time(summary.comparisons)
    return summary


def _cell_summary(grid: Grid, plan: Plan, cell: Cell, results: Rows) -> CellSummary:
    value, metrics = plan.chosen.get(cell.name), {}
    for metric in grid.metrics:
        values = {
            seed: row["metrics"][metric] for seed, row in results.items() if is_number(row["metrics"].get(metric))
        }
        if values:
            metrics[metric] = SeedMean(*mean_t_interval(list(values.values())), len(values), values)
    return CellSummary(
        cell=cell.levels,
        group=grid.group(cell),
        arm=grid.arm(cell),
        is_baseline=grid.is_baseline(cell),
        tuned_value=value,
        at_the_edge=grid.tune is not None and value is not None and at_the_edge(grid, value),
        metrics=metrics,
    )


def _compare(grid: Grid, cell: Cell, baseline: Cell, metric: str, pairs: Pairs) -> list[Comparison]:
    shared = {
        "cell": cell.levels,
        "baseline": baseline.levels,
        "group": grid.group(cell),
        "arm": grid.arm(cell),
        "metric": metric,
    }
    found = [_at_equal_tokens(metric, pairs, shared), _at_equal_time(grid, cell, metric, pairs, shared)]
    return [each for each in found if each is not None]


def _at_equal_tokens(metric: str, pairs: Pairs, shared: dict) -> Comparison | None:
    values = {seed: tuple(row["metrics"].get(metric) for row in pair) for seed, pair in pairs.items()}
    values = {seed: pair for seed, pair in values.items() if all(map(is_number, pair))}
    if not values:
        return None
    trained = {row["metrics"].get("train_tokens") for pair in pairs.values() for row in pair}
    return Comparison(basis=EQUAL_TOKENS, same_tokens=len(trained) == 1, **_difference(values), **shared)


def _at_equal_time(grid: Grid, cell: Cell, metric: str, pairs: Pairs, shared: dict) -> Comparison | None:
    cost = None
    if grid.relative_cost is not None:
        (axis,) = grid.baseline
        cost = grid.relative_cost[cell.levels[axis]]
    readings = {seed: read_at_equal_time(arm, base, metric, cost) for seed, (base, arm) in pairs.items()}
    readings = {seed: reading for seed, reading in readings.items() if reading is not None}
    if not readings:
        return None
    seconds = [reading.seconds for reading in readings.values() if reading.seconds is not None]
    shares = [reading.share for reading in readings.values()]
    return Comparison(
        basis=EQUAL_TIME,
        relative_cost=cost,
        budget_seconds=[min(seconds), max(seconds)] if seconds else None,
        budget_share=[min(shares), max(shares)],
        **_difference({seed: (reading.baseline, reading.arm) for seed, reading in readings.items()}),
        **shared,
    )


def _difference(values: Mapping[int, tuple[float, float]]) -> dict[str, Any]:
    return paired_over_seeds(values) | {"differences": {seed: arm - base for seed, (base, arm) in values.items()}}


def _correct(comparisons: list[Comparison]) -> None:
    """Holm's correction over the arms of one group, for each metric and basis."""
    families: dict[tuple, list[Comparison]] = {}
    for each in comparisons:
        families.setdefault((each.group, each.metric, each.basis), []).append(each)
    for family in families.values():
        correct_family(family)


def _compare_samples(grid: Grid, cell: Cell, pairs: Pairs, output_dir: str) -> list[SamplesOfArm]:
    tables = [[_samples(output_dir, row["id"]) for row in pair] for pair in pairs.values()]
    tables = [pair for pair in tables if all(pair)]
    columns = set.intersection(*(set(table) for pair in tables for table in pair)) if tables else set()
    found = []
    for column in sorted(columns):
        result = compare_samples([(base[column], arm[column]) for base, arm in tables])
        if result is not None:
            found.append(SamplesOfArm(cell.levels, grid.group(cell), grid.arm(cell), column, len(tables), result))
    return found


def _samples(output_dir: str, run: str) -> dict[str, dict[Any, float]]:
    """Value by sample id, by column."""
    columns: dict[str, dict[Any, float]] = {}
    for row in read_jsonl(Path(output_dir) / "runs" / run / SAMPLES_NAME):
        for name, value in row.items():
            if name != "id" and (isinstance(value, bool) or is_number(value)):
                columns.setdefault(name, {})[row["id"]] = float(value)
    return columns


def _missing(grid: Grid, results: Mapping[str, Rows]) -> list[str]:
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


def _without_time(comparisons: Sequence[Comparison]) -> list[str]:
    bases: dict[str, dict[str, list[int]]] = {}
    for each in comparisons:
        name = f"{each.metric} of " + ",".join(f"{axis}={level}" for axis, level in each.cell.items())
        bases.setdefault(name, {})[each.basis] = each.seeds
    return [
        f"{name}: at equal wall-clock only for seeds {found.get(EQUAL_TIME, [])} (no clock in the log, or the budget "
        "ends before the first evaluation)"
        for name, found in bases.items()
        if len(found.get(EQUAL_TIME, [])) < len(found.get(EQUAL_TOKENS, []))
    ]
