"""The training figures of any run from its log, several runs laid over each other."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .curves import LATENT_KEYS, curve, plot_training_curves
from .figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure
from .run_metrics import LOSS_KEY, PERPLEXITY_KEY, SPREAD_KEY, log_fit, with_derived


_DRAWN = (
    *(LOSS_KEY, PERPLEXITY_KEY, "eval_loss", "eval_perplexity", "evidence_flow/loss", "evidence_flow/weight"),
    *("aux_loss", "balance_loss", "learning_rate", SPREAD_KEY),
    *LATENT_KEYS,
)
_ROUTER_PREFIX = "router_"  # of RouterStatistics
_LAYER_KEY = re.compile(r"evidence_flow/layer_(\d+)")
_THOUGHT_KEY = re.compile(r"latent/kl_(\d+)")


def plot_run_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    path: str | os.PathLike,
    window: int = 20,
    smooth: int | None = None,
    further_keys: Sequence[str] = (),
) -> Path:
    """
    Draw loss, perplexity, Loss_p and its weight, load balance, learning rate and spread, as far as they are logged.

    Args:
        histories (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by the name of the run.
        path (`str` or `os.PathLike`):
            PNG to write.
        window (`int`, *optional*, defaults to `20`):
            Logged values of a window of the rolling coefficient of variation.
        smooth (`int`, *optional*):
            As in [`~hf_evidenceflow.report.curves.plot_training_curves`].
        further_keys (`Sequence[str]`, *optional*, defaults to `()`):
            Logged keys to draw besides.

    Returns:
        `Path`: The path written.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is nothing to draw, or a further key is in no log.
    """
    rows = {name: with_derived(history, window) for name, history in histories.items()}
    logged = {key for history in rows.values() for key in set().union(*history) if curve(history, key)[0]}
    if not logged & set(_DRAWN):
        raise ValueError(
            f"There is nothing to draw for the runs {list(histories)}: their logs hold {sorted(logged)}. A log of a "
            "training has `loss` and `step` in its rows."
        )
    keys = [key for key in _DRAWN if key in logged]
    keys += sorted(key for key in logged if key.startswith(_ROUTER_PREFIX))
    keys += [key for key in further_keys if key not in keys]
    return plot_training_curves(rows, path, keys=keys, smooth=smooth)


def plot_log_fit(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike) -> Path | None:
    """
    Draw the loss over the logarithm of the step into a PNG, with each run's fit; `histories` as in
    [`plot_run_curves`]. Returns the path; `None`, and no picture, if no run has three logged losses.
    """
    losses = {name: curve(with_derived(history), LOSS_KEY) for name, history in histories.items()}
    fits = {name: log_fit(*points) for name, points in losses.items()}
    if not any(fits.values()):
        return None
    figure = new_figure((4.2, 4.2))
    panel = figure.subplots()
    for index, (name, fit) in enumerate(fits.items()):
        if fit is None:
            continue
        colour, (steps, values) = COLOURS[index % len(COLOURS)], losses[name]
        panel.plot(steps, values, color=colour, alpha=0.45, linewidth=1)
        along = np.geomspace(max(steps[0], 1), steps[-1])
        label = f"{name}: {fit.intercept:.3g} {fit.slope:+.3g} ln(step), R² {fit.r_squared:.2f}"
        style = LINE_STYLES[index % len(LINE_STYLES)]
        panel.plot(along, fit.intercept + fit.slope * np.log(along), color=colour, ls=style, lw=2, label=label)
    panel.set_xscale("log")
    finish_panel(panel, "Logarithmic fit of the loss", "optimizer step", "loss without Loss_p, nats per token")
    figure.legend(loc="outside lower left", frameon=False, fontsize=8)
    return save_figure(figure, path)


def plot_layer_terms(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike) -> Path | None:
    """
    Draw the Loss_p term of each layer into a PNG, one panel per run that logs `evidence_flow/layer_{i}`; `histories`
    as in [`plot_run_curves`]. Returns the path; `None`, and no picture, if no run logs them.
    """
    return _plot_parts(histories, path, _LAYER_KEY, "Loss_p by layer", "term of the layer", "layer")


def plot_thoughts(histories: Mapping[str, Sequence[Mapping[str, Any]]], path: str | os.PathLike) -> Path | None:
    """
    Draw the KL of each thought to its target into a PNG, one panel per run that logs `latent/kl_{i}`; otherwise as
    [`plot_layer_terms`].
    """
    return _plot_parts(histories, path, _THOUGHT_KEY, "KL to the target by thought", "nats", "thought")


def _plot_parts(histories, path, pattern: re.Pattern, title: str, unit: str, part: str) -> Path | None:
    """A panel per run, with a line for each logged key that the pattern matches."""
    runs = {}
    for name, history in histories.items():
        found = {key: int(match[1]) for row in history for key in row if (match := pattern.fullmatch(key))}
        if found:
            runs[name] = sorted(found, key=found.get)
    if not runs:
        return None
    figure = new_figure((5.1, 3.4 * len(runs)))
    from matplotlib import colormaps

    panels = figure.subplots(len(runs), 1, squeeze=False, sharey=True).ravel()
    for panel, (name, keys) in zip(panels, runs.items()):
        for place, key in enumerate(keys):
            shade = colormaps["viridis"](0.9 * place / max(len(keys) - 1, 1))
            steps, values = curve(histories[name], key)
            marker = "o" if len(steps) < 3 else None
            panel.plot(steps, values, marker=marker, color=shade, linewidth=1.4, label=key.rpartition("_")[2])
        finish_panel(panel, f"{title}: {name}", y=unit)
        panel.legend(title=part, fontsize=7, title_fontsize=8, ncols=math.ceil(len(keys) / 12), frameon=False)
    panels[-1].set_xlabel("optimizer step", fontsize=9)
    return save_figure(figure, path)
