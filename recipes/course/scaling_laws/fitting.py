"""
Fits Chinchilla's parametric loss to measured runs (approach 3), with bootstrap intervals over the runs.

Minimised is the sum over the runs of Huber(log L_fit - log L), delta 1e-3, where log L_fit is the log-sum-exp of
(a - alpha log N, b - beta log D, e), with A = exp(a), B = exp(b), E = exp(e).

Source: Hoffmann et al. 2022 (2203.15556), equation 3 and appendix D.3. Deviations: log N and log D are centred, which
changes no optimum but makes the problem well-conditioned; the losses are summed, not averaged, as Besiroglu et al.
2024 (2404.10102) found that L-BFGS stops early on the mean; and the starts are a grid of exponents only, as for given
exponents the law is linear in E, A and B, which non-negative least squares finds at once.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hf_evidenceflow.evaluation.statistics import Interval
from hf_evidenceflow.recipes.course.scaling_laws.parametric_loss import ParametricLoss, require_positive


HUBER_DELTA = 1e-3
EXPONENTS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.5)
# For a, b, e, alpha and beta: exponents stay positive, and a vanishing term does not run off to minus infinity
_BOUNDS = ((-40, 40), (-40, 40), (-12, 5), (1e-3, 5), (1e-3, 5))
FEWEST_RUNS, FEWEST_SIZES = 6, 3


class Run(NamedTuple):
    """
    A finished training run.

    Args:
        parameters (`float`):
            Size of the model.
        tokens (`float`):
            Training tokens.
        loss (`float`):
            Held-out loss in nats a token.
    """

    parameters: float
    tokens: float
    loss: float


def fit_parametric_loss(runs: Sequence[Run], starts: int = 16) -> ParametricLoss:
    """
    Fit E, A, B, alpha and beta.

    Args:
        runs (`Sequence[Run]`):
            At least 6 runs with at least 3 different sizes and 3 different numbers of tokens.
        starts (`int`, *optional*, defaults to `16`):
            Points of the grid of 64, the best ones, that L-BFGS starts from.

    Returns:
        [`ParametricLoss`]: the fit.

    Raises:
        `ValueError`: if the runs are too few or too alike to tell five constants.

    Example:

    ```python
    >>> law = fit_parametric_loss([Run(1e6, 1e8, 3.9), ...])
    >>> law.optimal(1e18)
    ```
    """
    data, centre = _prepare(runs)
    points = [_start(alpha, beta, *data) for alpha, beta in itertools.product(EXPONENTS, repeat=2)]
    points.sort(key=lambda point: _objective(point, *data)[0])
    # Most of the way from each start, and all of it from the best
    near = _descend(points[:starts], data, iterations=200)
    return _law(_descend([near], data, iterations=5000), centre)


def bootstrap_fits(
    runs: Sequence[Run], law: ParametricLoss, resamples: int = 200, seed: int = 0
) -> list[ParametricLoss]:
    """
    Fits to resamples of the runs.

    Args:
        runs (`Sequence[Run]`):
            The runs.
        law ([`ParametricLoss`]):
            The fit to all of them; each resample's fit starts there.
        resamples (`int`, *optional*, defaults to `200`):
            Number of resamples with replacement. One that has too few different runs is drawn again.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.

    Returns:
        `list[ParametricLoss]`: one fit a resample.

    Raises:
        `ValueError`: if the runs are too few or too alike.
    """
    _prepare(runs)
    rng, fits = np.random.default_rng(seed), []
    while len(fits) < resamples:
        drawn = [runs[index] for index in rng.integers(len(runs), size=len(runs))]
        if not _tells_enough(drawn):
            continue
        data, centre = _prepare(drawn)
        log_a, log_b = np.log(law.A) - law.alpha * centre[0], np.log(law.B) - law.beta * centre[1]
        start = np.array([log_a, log_b, np.log(max(law.E, 1e-5)), law.alpha, law.beta])
        # The best fit of a resample may lie in another valley
        others = [_start(alpha, beta, *data) for alpha, beta in itertools.product(EXPONENTS[1::3], repeat=2)]
        others.sort(key=lambda point: _objective(point, *data)[0])
        fits.append(_law(_descend([start, others[0]], data, iterations=200), centre))
    return fits


def percentile_interval(value: float, samples: Sequence[float], confidence: float = 0.95) -> Interval:
    """
    Percentile interval of a bootstrap.

    Args:
        value (`float`):
            Estimate from all runs.
        samples (`Sequence[float]`):
            The same from each resample.
        confidence (`float`, *optional*, defaults to `0.95`):
            Confidence level.

    Returns:
        [`~evaluation.statistics.Interval`]: the estimate with its interval.
    """
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def check_enough_runs(runs: Sequence[tuple[float, float]]) -> None:
    """
    Check, before or after they are made, that runs can tell the five constants.

    Args:
        runs (`Sequence[tuple]`):
            Size of the model and number of tokens of each run.

    Raises:
        `ValueError`: if there are too few runs, sizes or numbers of tokens.
    """
    if not _tells_enough(runs):
        raise ValueError(
            f"Five constants need at least {FEWEST_RUNS} different runs with {FEWEST_SIZES} different sizes and "
            f"{FEWEST_SIZES} different numbers of tokens, got {len(set(runs))} different runs. Add some."
        )


def _tells_enough(runs: Sequence[tuple]) -> bool:
    different = [len({run[place] for run in runs}) for place in (0, 1)]
    return len(set(runs)) >= FEWEST_RUNS and min(different) >= FEWEST_SIZES


def _prepare(runs: Sequence[Run]) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[float, float]]:
    check_enough_runs(runs)
    parameters, tokens, losses = (np.array(column, dtype=float) for column in zip(*runs))
    require_positive(parameters=parameters, tokens=tokens, loss=losses)
    log_n, log_d = np.log(parameters), np.log(tokens)
    centre = float(log_n.mean()), float(log_d.mean())
    return (log_n - centre[0], log_d - centre[1], np.log(losses)), centre


def _start(alpha: float, beta: float, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray) -> np.ndarray:
    """The point with these exponents whose other constants fit the losses best, in least squares."""
    from scipy.optimize import nnls

    columns = np.stack([np.exp(-alpha * log_n), np.exp(-beta * log_d), np.ones_like(log_n)], axis=1)  # [runs, 3]
    factors, _ = nnls(columns, np.exp(log_loss))
    return np.array([*np.log(np.maximum(factors, 1e-5)), alpha, beta])


def _objective(point: np.ndarray, log_n: np.ndarray, log_d: np.ndarray, log_loss: np.ndarray):
    """Huber loss of the logarithms and its gradient, for (a, b, e, alpha, beta) with centred log N and log D."""
    a, b, e, alpha, beta = point
    terms = np.stack([a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)])  # [3, runs]
    top = terms.max(0)
    weights = np.exp(terms - top)
    total = weights.sum(0)
    error = top + np.log(total) - log_loss
    size = np.abs(error)
    huber = np.where(size <= HUBER_DELTA, error**2 / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
    slopes = np.clip(error, -HUBER_DELTA, HUBER_DELTA) * weights / total  # [3, runs]
    gradient = [slopes[0].sum(), slopes[1].sum(), slopes[2].sum(), -slopes[0] @ log_n, -slopes[1] @ log_d]
    return huber.sum(), np.array(gradient)


def _descend(starts, data, iterations: int) -> np.ndarray:
    from scipy.optimize import minimize

    # Scaled by delta, so that the stopping rules see numbers of order 1
    def objective(point):
        value, gradient = _objective(point, *data)
        return value / HUBER_DELTA**2, gradient / HUBER_DELTA**2

    options = {"maxiter": iterations, "maxfun": 10 * iterations, "ftol": 1e-14, "gtol": 1e-9, "maxcor": 20}
    low, high = np.array(_BOUNDS).T
    fits = [
        minimize(objective, np.clip(start, low, high), jac=True, method="L-BFGS-B", bounds=_BOUNDS, options=options)
        for start in starts
    ]
    return min(fits, key=lambda fit: fit.fun).x


def _law(point: np.ndarray, centre: tuple[float, float]) -> ParametricLoss:
    a, b, e, alpha, beta = (float(value) for value in point)
    return ParametricLoss(
        E=float(np.exp(e)),
        A=float(np.exp(a + alpha * centre[0])),
        B=float(np.exp(b + beta * centre[1])),
        alpha=alpha,
        beta=beta,
    )
