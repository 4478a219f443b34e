"""The picture of the recipe: both training losses, and the gaps that each model filled right by their length."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_evidenceflow.evaluation.statistics import Interval
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows, thinned
from hf_evidenceflow.recipes.course.shared.seed_plots import draw_curve, error_bars, note_seeds
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


def filling_rows(
    logs: Mapping[str, Sequence[Mapping]],
    shares: Mapping[str, Mapping[int, Interval]],
    nats: Mapping[str, Interval],
    measured: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict]:
    """
    What the picture is drawn from, and what else was measured on held-out text.

    Args:
        logs (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by the name of the model.
        shares (`Mapping[str, Mapping[int, Interval]]`):
            Share of the gaps filled right, by the way of filling and the length of the gap.
        nats (`Mapping[str, Interval]`):
            What a hidden token costs, by the way of filling.
        measured (`Mapping[str, Mapping[str, Any]]`):
            `loss` by objective, among others.

    Returns:
        `dict[str, dict]`: curves and scores of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    found = {name: {size: share._asdict() for size, share in by.items()} for name, by in shares.items()}
    losses = {name: row["loss"] for name, row in measured.items() if "loss" in row}
    costs = {name: cost._asdict() for name, cost in nats.items()}
    return {
        "curves": {name: thinned(log, ["loss"]) for name, log in logs.items()},
        "scores": {"filled": found, "nats per hidden token": costs, "held-out loss": losses},
    }


def plot_filling(rows: PictureRows, path: str | os.PathLike) -> Path:
    """Draw both panels of [`filling_rows`] into a PNG."""
    figure = new_figure((9.6, 3.8))
    left, right = figure.subplots(1, 2)
    filled = rows.scores["filled"]
    for index, (name, curves) in enumerate(rows.curves.items()):
        draw_curve(left, curves["loss"], index, name)
    for index, (name, by_length) in enumerate(filled.items()):
        values, reach = error_bars(by_length.values())
        places = [int(length) + 0.08 * (index - (len(filled) - 1) / 2) for length in by_length]
        style = {"fmt": "o", "linestyle": LINE_STYLES[index], "color": COLOURS[index], "markersize": 4, "capsize": 3}
        right.errorbar(places, values, yerr=reach, label=name, **style)
    finish_panel(left, "Training loss", "optimizer step", "nats per predicted token")
    finish_panel(right, "Gaps filled right", "tokens in the gap", rows.spread("share"))
    right.set_xticks([int(length) for length in next(iter(filled.values()))])
    right.set_ylim(-0.03, 1.03)
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=8)
    note_seeds(figure, rows)
    return save_figure(figure, path)
