"""
What the seeds say about an arm. The statistics are scipy's and statsmodels'.

Three seeds are few: intervals and tests are Student's t on the seeds. A bootstrap over three values would only
resample ten different sets, so it is used where there are values per sample.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_evidenceflow.recipes.experiments.runs import is_number

from .intervals import Interval, PairedDifference, paired_difference


class BudgetReading(NamedTuple):
    """
    Two runs read at one budget.

    Args:
        arm (`float`):
            Metric of the arm at the budget.
        baseline (`float`):
            Metric of the baseline at the budget.
        share (`float`):
            Budget as a share of the baseline's whole training.
        seconds (`float`, *optional*):
            Budget in seconds of the baseline's clock, where it has one.
    """

    arm: float
    baseline: float
    share: float
    seconds: float | None


class SampleComparison(NamedTuple):
    """
    Two arms on the same samples.

    Args:
        samples (`int`):
            Different samples.
        pairs (`int`):
            Pairs of a sample and a seed.
        difference (`float`), low (`float`), high (`float`):
            Mean difference with its bootstrap interval over the samples, each averaged over the seeds.
        p_value (`float`, *optional*):
            McNemar's exact test on all pairs; `None` if the values are not all 0 or 1.
    """

    samples: int
    pairs: int
    difference: float
    low: float
    high: float
    p_value: float | None


def mean_t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """
    Mean over seeds with Student's t interval.

    Args:
        values (`Sequence[float]`):
            One value a seed.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.

    Returns:
        [`~hf_evidenceflow.evaluation.intervals.Interval`]: The mean; its ends are `nan` for a single seed.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    error = stats.sem(values)
    if error == 0:
        return Interval(mean, mean, mean)
    low, high = stats.t.interval(confidence, df=len(values) - 1, loc=mean, scale=error)
    return Interval(mean, float(low), float(high))


def paired_t_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """
    Difference of two arms over the seeds that both have.

    Args:
        first (`Sequence[float]`):
            Metric of the baseline, one value a seed.
        second (`Sequence[float]`):
            Metric of the arm, of the same seeds in the same order.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.

    Returns:
        [`~evaluation.intervals.PairedDifference`]: `second - first`, its t interval, and the p-value of
        the paired t-test; `None` where the differences have no spread, as with one seed.
    """
    from scipy import stats

    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    interval = mean_t_interval(difference, confidence)
    # Differences that are equal up to rounding would give a p-value of rounding errors.
    if len(difference) < 2 or np.allclose(difference, difference[0], rtol=1e-9, atol=1e-15):
        return PairedDifference(*interval, None)
    return PairedDifference(*interval, float(stats.ttest_rel(second, first).pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """
    Holm's correction of the p-values of one family.

    Args:
        p_values (`Sequence[float | None]`):
            P-values; `None` stays `None` and does not count.

    Returns:
        `list[float | None]`: Corrected p-values in the same order.
    """
    from statsmodels.stats.multitest import multipletests

    known = [p for p in p_values if p is not None]
    corrected = iter(multipletests(known, method="holm")[1] if known else [])
    return [None if p is None else float(next(corrected)) for p in p_values]


def read_curve(evals: Sequence[Mapping[str, Any]], metric: str, position: str, at: float) -> float | None:
    """
    Read an evaluation curve between its points.

    Between two evaluations the metric is taken as linear in the logarithm of the position, which follows a loss curve
    more closely than a straight line; nothing is extrapolated.

    Args:
        evals (`Sequence[Mapping]`):
            `evals` of a result.
        metric (`str`):
            What to read, such as `"eval_loss"`.
        position (`str`):
            Where: `"step"`, `"train_seconds"` or `"train_tokens"`.
        at (`float`):
            The position.

    Returns:
        `float` or `None`: The metric; `None` outside the evaluated range.
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

    Args:
        arm (`Mapping`):
            Result row of the arm.
        baseline (`Mapping`):
            Result row of the baseline, of the same seed.
        metric (`str`):
            What to read.
        relative_cost (`float`, *optional*):
            Time of a step of the arm relative to the baseline's. If not given, the runs' own `train_seconds`.

    Returns:
        [`BudgetReading`] or `None`: Both at the budget; `None` without a clock or with the budget before an arm's
        first evaluation.
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


def compare_samples(
    pairs: Sequence[tuple[Mapping[Any, float], Mapping[Any, float]]], seed: int = 0
) -> SampleComparison | None:
    """
    Compare two arms sample by sample.

    Args:
        pairs (`Sequence[tuple[Mapping, Mapping]]`):
            For each seed, value by sample id of the baseline and of the arm.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the bootstrap.

    Returns:
        [`SampleComparison`] or `None`: `None` if no sample is in all of them. McNemar's test takes the seeds' answers
        to one sample as independent; the bootstrap does not.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    shared = set.intersection(*(set(values) for pair in pairs for values in pair)) if pairs else set()
    if not shared:
        return None
    ids = sorted(shared, key=str)
    first, second = (np.array([[pair[side][i] for i in ids] for pair in pairs], dtype=float) for side in (0, 1))
    mean = paired_difference(first.mean(axis=0), second.mean(axis=0), seed=seed)
    p_value = None
    if np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        table = [[int(((first == a) & (second == b)).sum()) for b in (1, 0)] for a in (1, 0)]
        p_value = float(mcnemar(table, exact=True).pvalue)
    return SampleComparison(len(ids), first.size, mean.value, mean.low, mean.high, p_value)


def _end(evals: Sequence[Mapping[str, Any]], metric: str, position: str) -> float | None:
    return max((row[position] for row in evals if _positive(row.get(position)) and metric in row), default=None)


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0
