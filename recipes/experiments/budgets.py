"""Reads two runs at one budget of tokens, seconds or steps, from their periodic evaluations."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_evidenceflow.recipes.experiments.runs import is_number


class BudgetReading(NamedTuple):
    """
    The metric of two runs at one budget, which is a `share` of the baseline's training, and `seconds` of its clock.
    """

    arm: float
    baseline: float
    share: float
    seconds: float | None


def read_curve(evals: Sequence[Mapping[str, Any]], metric: str, position: str, at: float) -> float | None:
    """
    Read an evaluation curve between its points.

    Between two evaluations the metric, such as `"eval_loss"`, is taken as linear in the logarithm of the position
    (`"step"`, `"train_seconds"` or `"train_tokens"`), which follows a loss curve more closely than a straight line.
    Nothing is extrapolated: outside the evaluated range it is `None`.
    """
    points = {
        row[position]: row[metric] for row in evals if _positive(row.get(position)) and is_number(row.get(metric))
    }
    if not points or not min(points) <= at <= max(points):
        return None
    where = sorted(points)
    return float(np.interp(math.log(at), np.log(where), [points[each] for each in where]))


def read_at_equal_time(
    arm: Mapping[str, Any], baseline: Mapping[str, Any], metric: str, relative_cost: float | None = None
) -> BudgetReading | None:
    """
    Read two runs at one wall-clock budget: the baseline's whole training, or the arm's where that is shorter.

    The clock is `relative_cost`, the time of a step of the arm relative to the baseline's, or else the runs' own
    `train_seconds`. `None` without a clock, or with the budget before an arm's first evaluation.
    """
    position, cost = ("train_seconds", 1.0) if relative_cost is None else ("step", relative_cost)
    ends = [_end(run["evals"], metric, position) for run in (arm, baseline)]
    if None in ends:
        return None
    # In units of the baseline; the two readings are one of the runs' ends and a point within the other.
    at_arm, at_baseline = (
        (ends[0], ends[0] * cost) if ends[0] * cost < ends[1] else (min(ends[1] / cost, ends[0]), ends[1])
    )
    values = (
        read_curve(arm["evals"], metric, position, at_arm),
        read_curve(baseline["evals"], metric, position, at_baseline),
    )
    if None in values:
        return None
    share = at_baseline / ends[1]
    whole = _end(baseline["evals"], metric, "train_seconds")
    return BudgetReading(*values, share, None if whole is None else share * whole)


def read_at_equal_budget(
    arm: Mapping[str, Any], baseline: Mapping[str, Any], metric: str, position: str
) -> tuple[float, float, float] | None:
    """
    Read two runs at the largest budget (`"train_tokens"` or `"train_seconds"`) that both have been evaluated at.

    Returns:
        `tuple` or `None`: baseline, arm and the budget; `None` if a run has no evaluation or the budget ends before
        the first one of the other.

    Example:

    ```python
    >>> slow = {"evals": [{"train_tokens": 10, "eval_accuracy": 0.2}, {"train_tokens": 40, "eval_accuracy": 0.4}]}
    >>> fast = {"evals": [{"train_tokens": 5, "eval_accuracy": 0.1}, {"train_tokens": 20, "eval_accuracy": 0.5}]}
    >>> read_at_equal_budget(slow, fast, "eval_accuracy", "train_tokens")  # 20 is half-way from 10 to 40 in the log
    (0.5, 0.3..., 20)
    ```
    """
    ends = [
        max((row[position] for row in run["evals"] if position in row and is_number(row.get(metric))), default=None)
        for run in (baseline, arm)
    ]
    if None in ends:
        return None
    budget = min(ends)
    values = [read_curve(run["evals"], metric, position, budget) for run in (baseline, arm)]
    return None if None in values else (*values, budget)


def _end(evals: Sequence[Mapping[str, Any]], metric: str, position: str) -> float | None:
    return max((row[position] for row in evals if _positive(row.get(position)) and metric in row), default=None)


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0
