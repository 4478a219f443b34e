"""The numbers of a training from its log: perplexity, its spread over time, and the trend of the loss.

The loss of a run is what its model gave: the cross-entropy, with the balance loss of a mixture of experts. With the
EvidenceFlow callback the trained `loss` holds the weighted Loss_p too; there `evidence_flow/model_loss` is taken.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .curves import curve


# What is derived stands in the log under these keys
LOSS_KEY, PERPLEXITY_KEY, SPREAD_KEY = "derived/loss", "derived/perplexity", "derived/perplexity_cv"


class LogFit(NamedTuple):
    """
    The least-squares fit `loss = intercept + slope * ln(step)`.

    Args:
        intercept (`float`):
            Fitted loss at step 1.
        slope (`float`):
            Change of the loss when the step grows e-fold; negative where the run learns.
        r_squared (`float`):
            Share of the loss's variance that the fit explains.
        points (`int`):
            Logged values that were fitted.
    """

    intercept: float
    slope: float
    r_squared: float
    points: int


def loss_key(history: Sequence[Mapping[str, Any]]) -> str | None:
    """
    The logged key that holds a run's loss without Loss_p.

    Args:
        history (`Sequence[Mapping]`):
            `trainer.state.log_history`.

    Returns:
        `str` or `None`: `"evidence_flow/model_loss"` where it is logged, else `"loss"`; `None` if there is neither, or
        if `loss` is no cross-entropy: it holds a weighted Loss_p or what thoughts are taught, or is the objective of a
        training on rewards.
    """
    logged = set().union(*history)
    if "evidence_flow/model_loss" in logged:
        return "evidence_flow/model_loss"
    mixed = bool(logged & {"evidence_flow/loss", "latent/kl", "latent/distance"})
    mixed |= any(key.startswith("reward") for key in logged)
    return "loss" if "loss" in logged and not mixed else None


def rolling_cv(values: Sequence[float], window: int) -> list[float]:
    """
    Coefficient of variation (standard deviation / mean) within each window of consecutive values.

    Args:
        values (`Sequence[float]`):
            Logged values, above 0.
        window (`int`):
            Values of a window.

    Returns:
        `list[float]`: One number for each whole window, first to last; the deviation is the population's. Empty if
        there are fewer values than a window has.

    Raises:
        ValueError: If `window` is below 2.
    """
    if window < 2:
        raise ValueError(f"`window` must be at least 2 values, got {window}.")
    if len(values) < window:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(values, dtype=float), window)
    return (windows.std(axis=1) / windows.mean(axis=1)).tolist()


def log_fit(steps: Sequence[int], values: Sequence[float]) -> LogFit | None:
    """Fit `value = a + b ln(step)` to the steps from 1 on; `None` if fewer than three points are left."""
    from scipy.stats import linregress

    points = [(math.log(step), value) for step, value in zip(steps, values) if step >= 1]
    if len(points) < 3:
        return None
    fit = linregress(*zip(*points))
    return LogFit(float(fit.intercept), float(fit.slope), float(fit.rvalue**2), len(points))


def run_metrics(history: Sequence[Mapping[str, Any]], window: int = 20, cv_threshold: float = 0.1) -> dict[str, Any]:
    """
    The numbers of one run.

    Args:
        history (`Sequence[Mapping]`):
            `trainer.state.log_history`.
        window (`int`, *optional*, defaults to `20`):
            Logged values of a window of the rolling coefficient of variation.
        cv_threshold (`float`, *optional*, defaults to `0.1`):
            Coefficient of variation above which a window counts as unsteady.

    Returns:
        `dict`: `loss_key`, `last_loss`, `last_perplexity`, `last_eval_loss`, `last_loss_p`, `log_fit` (a [`LogFit`] as
        a dictionary), `perplexity_cv` (`mean`, `max`, `windows`, `window`, `threshold`, `share_above`); `None` for
        what the log does not give.
    """
    rows = with_derived(history, window)
    fit = log_fit(*curve(rows, LOSS_KEY))
    spread = curve(rows, SPREAD_KEY)[1]
    return {
        "loss_key": loss_key(history),
        "last_loss": _last(rows, LOSS_KEY),
        "last_perplexity": _last(rows, PERPLEXITY_KEY),
        "last_eval_loss": _last(rows, "eval_loss"),
        "last_loss_p": _last(rows, "evidence_flow/loss"),
        "log_fit": fit and fit._asdict(),
        "perplexity_cv": {
            "mean": float(np.mean(spread)) if spread else None,
            "max": max(spread, default=None),
            "windows": len(spread),
            "window": window,
            "threshold": cv_threshold,
            "share_above": float(np.mean(np.array(spread) > cv_threshold)) if spread else None,
        },
    }


def with_derived(history: Sequence[Mapping[str, Any]], window: int = 20) -> list[dict[str, Any]]:
    """
    The rows of a log, then rows with `derived/loss`, `derived/perplexity`, `derived/perplexity_cv` (over `window`
    logged values, at the last step of each) and, where it is not logged, `eval_perplexity`.
    """
    key, rows = loss_key(history), [dict(row) for row in history]
    steps, losses = curve(history, key) if key is not None else ([], [])
    # exp of a diverged loss is no number a picture can show
    perplexities = [math.exp(loss) if loss < 700 else math.inf for loss in losses]
    finite = [(step, value) for step, value in zip(steps, perplexities) if math.isfinite(value)]
    rows += [{"step": step, LOSS_KEY: loss} for step, loss in zip(steps, losses)]
    rows += [{"step": step, PERPLEXITY_KEY: value} for step, value in finite]
    spread = rolling_cv([value for _, value in finite], window)
    rows += [{"step": step, SPREAD_KEY: value} for (step, _), value in zip(finite[window - 1 :], spread)]
    if not any("eval_perplexity" in row for row in history):
        held_out = zip(*curve(history, "eval_loss"))
        rows += [{"step": step, "eval_perplexity": math.exp(loss)} for step, loss in held_out if loss < 700]
    return rows


def _last(rows, key):
    values = curve(rows, key)[1]
    return values[-1] if values else None
