"""A test of whether samples come from a known distribution, by their total variation distance from it."""

from typing import NamedTuple

import numpy as np


class TotalVariationTest(NamedTuple):
    """
    Args:
        distance (`float`):
            Total variation distance between the counts' shares and the distribution, in [0, 1].
        typical (`float`):
            Median of it among samples of the same size that do come from the distribution.
        p_value (`float`):
            Share of such samples that are at least as far away, with the observed one counted among them.
    """

    distance: float
    typical: float
    p_value: float


def total_variation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Half the sum of absolute differences of two distributions, over the last axis."""
    return np.abs(np.asarray(first) - np.asarray(second)).sum(-1) / 2


def total_variation_test(
    counts: np.ndarray, probabilities: np.ndarray, resamples: int = 2000, seed: int = 0
) -> TotalVariationTest:
    """
    Compare counts with the distribution that they should come from.

    The distance of a finite sample is never 0, so it is compared with that of multinomial samples of the same size.
    Outcomes that are expected less than once are counted as one: alone they could tell nothing.

    Args:
        counts (`np.ndarray` of shape `(K,)`):
            How often each outcome was seen.
        probabilities (`np.ndarray` of shape `(K,)`):
            The distribution.
        resamples (`int`, *optional*, defaults to `2000`):
            Samples drawn from it.
        seed (`int`, *optional*, defaults to `0`):
            Their seed.

    Returns:
        [`TotalVariationTest`]: the distance, and how probable one as great is.

    Raises:
        `ValueError`: if the shapes differ, there are no counts, or the probabilities do not sum to 1.
    """
    counts, probabilities = np.asarray(counts), np.asarray(probabilities, dtype=np.float64)
    if counts.shape != probabilities.shape or counts.ndim != 1:
        raise ValueError(f"Counts of shape {counts.shape} do not fit probabilities of shape {probabilities.shape}.")
    draws = int(counts.sum())
    if draws < 1:
        raise ValueError("There are no samples: all counts are 0.")
    if abs(probabilities.sum() - 1) > 1e-4:
        raise ValueError(f"`probabilities` must sum to 1, got {probabilities.sum():.6f}.")
    probabilities = probabilities / probabilities.sum()
    rare = probabilities * draws < 1
    if rare.any():
        counts, probabilities = (np.append(values[~rare], values[rare].sum()) for values in (counts, probabilities))
    distance = float(total_variation(counts / draws, probabilities))
    samples = np.random.default_rng(seed).multinomial(draws, probabilities, size=resamples) / draws
    null = total_variation(samples, probabilities)
    return TotalVariationTest(
        distance, float(np.median(null)), float(((null >= distance - 1e-12).sum() + 1) / (resamples + 1))
    )
