"""How sure a measured accuracy, or a difference of two, is. The statistics are scipy's."""

from collections.abc import Sequence
from math import comb
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """
    An estimate with its confidence interval.

    Args:
        value (`float`):
            Estimate.
        low (`float`):
            Lower end of the interval.
        high (`float`):
            Upper end of the interval.
    """

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """
    The difference of two systems on the same problems.

    Args:
        value (`float`):
            Mean of `second - first` over the problems.
        low (`float`):
            Lower end of its interval.
        high (`float`):
            Upper end of its interval.
        p_value (`float` or `None`):
            Exact McNemar test of "both are equally often right"; `None` if the scores are not all 0 or 1.
    """

    value: float
    low: float
    high: float
    p_value: float | None


def proportion_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """
    Wilson's interval of a proportion, for one answer per problem.

    Args:
        successes (`int`):
            Right answers.
        n (`int`):
            Problems.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.

    Returns:
        [`Interval`]: The proportion with its interval.

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
    Bootstrap interval of a mean over problems, for several samples per problem.

    The problems are resampled, not the samples: samples of one problem are not independent of each other.

    Args:
        rates (`Sequence[float]`):
            One rate in [0, 1] per problem, such as its share of right samples.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.
        n_resamples (`int`, *optional*, defaults to `9999`):
            Number of resamples.

    Returns:
        [`Interval`]: The mean with its interval. If all problems are at 0, or all at 1, no resample differs; Wilson's
        interval over the problems is given then.
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


def pass_at_k(n: int, c: int, k: int) -> float:
    """
    Unbiased estimate of the chance that at least one of `k` samples is right.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.

    Args:
        n (`int`):
            Samples drawn for the problem.
        c (`int`):
            Right samples among them.
        k (`int`):
            Samples allowed, at most `n`.

    Returns:
        `float`: `1 - C(n - c, k) / C(n, k)`.
    """
    if not 1 <= k <= n:
        raise ValueError(f"`k` must be in [1, n], got k={k}, n={n}. Draw more samples per problem.")
    if not 0 <= c <= n:
        raise ValueError(f"`c` must be in [0, n], got c={c}, n={n}.")
    return 1 - comb(n - c, k) / comb(n, k)


def paired_difference(
    first: Sequence[float],
    second: Sequence[float],
    confidence: float = 0.95,
    seed: int = 0,
    n_resamples: int = 9_999,
) -> PairedDifference:
    """
    Compare two systems on the same problems: paired bootstrap for the size, exact McNemar test for the sign.

    Args:
        first (`Sequence[float]`):
            Score per problem of the first system, such as the control.
        second (`Sequence[float]`):
            Score per problem of the second system, in the same order.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the resampling.
        n_resamples (`int`, *optional*, defaults to `9999`):
            Number of resamples.

    Returns:
        [`PairedDifference`]: `second - first` with its interval and p-value.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1 or first.size == 0:
        raise ValueError(
            "`first` and `second` must hold one score for each of the same problems, got shapes "
            f"{first.shape} and {second.shape}."
        )
    difference = second - first
    p_value = None
    if np.isin(np.concatenate([first, second]), (0.0, 1.0)).all():
        gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
        p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    interval = _bootstrap_mean(difference, confidence, seed, n_resamples)
    return PairedDifference(float(difference.mean()), *interval, p_value)


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
