"""Intervals and paired tests, over the problems of an evaluation or the seeds of an experiment; scipy's throughout.

Problems are many, so that they are resampled (bootstrap). Seeds are few: a bootstrap of three values has ten different
resamples, so that their intervals and tests are Student's t.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate, `value`, and the ends of its confidence interval, `low` and `high`."""

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """The mean of `second - first` over pairs, the ends of its interval, and a test of "no difference" or `None`."""

    value: float
    low: float
    high: float
    p_value: float | None


class SampleComparison(NamedTuple):
    """
    Two arms on the same samples: the number of `samples` and of `pairs` of a sample and a seed, the mean `difference`
    with its bootstrap interval over the samples, each averaged over the seeds, and [`mcnemar`] on all pairs.
    """

    samples: int
    pairs: int
    difference: float
    low: float
    high: float
    p_value: float | None


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """
    Wilson's interval of the proportion `successes / n`, for one answer per problem.

    Example:

    ```python
    >>> proportion_interval(938, 1319)  # the published GSM8K accuracy of .711
    Interval(value=0.711..., low=0.686..., high=0.734...)
    ```
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"`successes` must be in [0, n] and `n` at least 1, got successes={successes}, n={n}.")
    interval = binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return Interval(successes / n, float(interval.low), float(interval.high))


def mean_interval(
    rates: Sequence[float], confidence: float = 0.95, seed: int = 0, n_resamples: int = 9_999
) -> Interval:
    """
    Bootstrap interval of a mean over problems, for several samples per problem: one rate in [0, 1] per problem, such
    as its share of right samples.

    The problems are resampled, not the samples: samples of one problem are not independent of each other. If all
    problems are at 0, or all at 1, no resample differs; Wilson's interval over the problems is given then.
    """
    rates = np.asarray(rates, dtype=float)
    if rates.ndim != 1 or rates.size == 0 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(
            f"`rates` must be a non-empty list of numbers in [0, 1], one per problem, got shape {rates.shape} with "
            f"{rates.ravel()[:5].tolist()}..."
        )
    if rates.min() == rates.max() and rates[0] in (0.0, 1.0):
        return proportion_interval(int(rates.sum()), rates.size, confidence)
    return Interval(float(rates.mean()), *_bootstrap_mean(rates, confidence, seed, n_resamples))


def mean_t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The mean over seeds with Student's t interval, whose ends are `nan` for a single seed."""
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


def ratio_interval(sums: Sequence[float], counts: Sequence[float], confidence: float = 0.95) -> Interval:
    """
    A mean over items that come in clusters, such as the tokens of texts: the sums over those of the counts, with the t
    interval over the clusters (their residuals, linearized).
    """
    sums, counts = np.asarray(sums, dtype=float), np.asarray(counts, dtype=float)
    ratio = float(sums.sum() / counts.sum())
    _, low, high = mean_t_interval((sums - ratio * counts) / counts.mean(), confidence)
    return Interval(ratio, ratio + low, ratio + high)


def paired_t_difference(first: Sequence[float], second: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """
    Difference of two arms over the same seeds, in the same order, with the t interval.

    The p-value is that of the paired t-test; `None` where the differences have no spread, as with one seed.
    """
    from scipy import stats

    difference = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    interval = mean_t_interval(difference, confidence)
    # Differences that are equal up to rounding would give a p-value of rounding errors.
    if len(difference) < 2 or np.allclose(difference, difference[0], rtol=1e-9, atol=1e-15):
        return PairedDifference(*interval, None)
    return PairedDifference(*interval, float(stats.ttest_rel(second, first).pvalue))


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = 9_999,
) -> PairedDifference:
    """
    Compare two systems by their score on each problem: paired bootstrap for the size, [`mcnemar`] for the sign.

    `first` is such as the control; `second` has the same problems in the same order.
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(
            "`first` and `second` must hold one score for each of the same problems, got shapes "
            f"{first.shape} and {second.shape}."
        )
    difference = second - first
    interval = _bootstrap_mean(difference, confidence, seed, n_resamples)
    return PairedDifference(float(difference.mean()), *interval, mcnemar(first, second))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float | None:
    """
    P-value of McNemar's exact test that two systems are equally often right, from scores of one shape; `None` if they
    are not all 0 or 1.
    """
    from scipy.stats import binomtest

    if not np.isin(np.concatenate([first, second], axis=None), (0.0, 1.0)).all():
        return None
    gained, lost = int((second > first).sum()), int((second < first).sum())
    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def compare_samples(
    pairs: Sequence[tuple[Mapping[Any, float], Mapping[Any, float]]], seed: int = 0
) -> SampleComparison | None:
    """
    Compare two arms sample by sample: for each seed, value by sample id of the baseline and of the arm.

    `None` if no sample is in all of them. McNemar's test takes the seeds' answers to one sample as independent; the
    bootstrap does not.
    """
    shared = set.intersection(*(set(values) for pair in pairs for values in pair)) if pairs else set()
    if not shared:
        return None
    ids = sorted(shared, key=str)
    first, second = (np.array([[pair[side][i] for i in ids] for pair in pairs], dtype=float) for side in (0, 1))
    mean = paired_difference(first.mean(axis=0), second.mean(axis=0), seed=seed)
    return SampleComparison(len(ids), first.size, mean.value, mean.low, mean.high, mcnemar(first, second))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's correction of the p-values of one family, in the same order; `None` stays `None` and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected, least = [None] * len(p_values), 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, p * (len(known) - rank)))
        corrected[place] = float(least)
    return corrected


def pass_at_k(n: int, c: int, k: int) -> float:
    """
    Unbiased estimate of the chance that at least one of `k` samples is right: `1 - C(n - c, k) / C(n, k)`.

    `n` samples were drawn for the problem, of which `c` are right; `k` is at most `n`.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if not 1 <= k <= n:
        raise ValueError(f"`k` must be in [1, n], got k={k}, n={n}. Draw more samples per problem.")
    if not 0 <= c <= n:
        raise ValueError(f"`c` must be in [0, n], got c={c}, n={n}.")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def _bootstrap_mean(values: np.ndarray, confidence: float, seed: int, n_resamples: int) -> tuple[float, float]:
    from scipy.stats import bootstrap

    if values.min() == values.max():
        return float(values[0]), float(values[0])
    interval = bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=n_resamples,
        # All resamples at once would take n_resamples * len(values) numbers.
        batch=1_000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
