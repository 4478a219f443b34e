"""The picture of contextual pretraining: each training loss apart, the probes, the weights that ELMo's mix learnt."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows, thinned
from hf_evidenceflow.recipes.course.shared.seed_plots import draw_curve, error_bars, note_seeds
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure


# Model, title, unit, parts of the loss in the log, and the level of knowing nothing
CURVES = (
    ("ELMo", "ELMo", "loss (nats per word)", {"forward_loss": "forward", "backward_loss": "backward"}, None),
    ("BERT", "BERT, masked words", "loss (nats per masked token)", {"masked_token_loss": "masked words"}, None),
    (
        "BERT",
        "BERT, next sentence",
        "loss (nats per pair)",
        {"next_sentence_loss": "next sentence"},
        (math.log(2), "a guess, ln 2"),
    ),
)


def pretraining_rows(
    logs: Mapping[str, Sequence[Mapping]],
    probes: Mapping[str, Mapping[str, Mapping]],
    mixes: Mapping[str, Sequence[float]],
    measured: Mapping[str, Mapping[str, Any]],
) -> dict[str, dict]:
    """
    What the picture is drawn from, and what else was measured on held-out text.

    Args:
        logs (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by model.
        probes (`Mapping[str, Mapping[str, Mapping]]`):
            By question and representation: `value`, `low` and `high` of the accuracy; the last one of each question is
            the majority's.
        mixes (`Mapping[str, Sequence[float]]`):
            Weights of ELMo's layers by question.
        measured (`Mapping[str, Mapping[str, Any]]`):
            Perplexities, losses and accuracies by model, among others.

    Returns:
        `dict[str, dict]`: curves and scores of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    keys = [key for *_, parts, _ in CURVES for key in parts]
    curves = {name: thinned(log, keys) for name, log in logs.items()}
    held_out = {
        name: {key: value for key, value in found.items() if key.endswith(("perplexity", "loss", "accuracy"))}
        for name, found in measured.items()
    }
    return {"curves": curves, "scores": {"held out": held_out, "probes": probes, "mixes": mixes}}


def plot_pretraining(rows: PictureRows, path: str | os.PathLike) -> Path:
    """Draw the curves of [`pretraining_rows`], and what the probes found if there are any, into a PNG."""
    drawn = [
        partial(_draw_curves, curves=rows.curves[name], title=title, unit=unit, parts=parts, level=level)
        for name, title, unit, parts, level in CURVES
        if name in rows.curves
    ]
    if rows.scores["probes"]:
        drawn.append(partial(_draw_probes, rows=rows))
    if rows.scores["mixes"]:
        drawn.append(partial(_draw_mixes, mixes=rows.scores["mixes"]))
    columns = min(3, len(drawn))
    height = -(-len(drawn) // columns)
    figure = new_figure((4.4 * columns, 3.6 * height))
    panels = figure.subplots(height, columns, squeeze=False).ravel()
    for panel, draw in zip(panels, drawn):
        draw(panel)
    for panel in panels[len(drawn) :]:
        panel.set_visible(False)
    note_seeds(figure, rows)
    return save_figure(figure, path)


def _draw_curves(panel, curves: Mapping[str, Mapping], title, unit, parts: Mapping[str, str], level) -> None:
    for index, (key, label) in enumerate(parts.items()):
        draw_curve(panel, curves[key], index, label, max(1, len(curves[key]["steps"]) // 20))
    if level is not None:
        panel.axhline(level[0], color="0.35", linestyle=":", linewidth=1, label=level[1])
    panel.legend(frameon=False, fontsize=8)
    finish_panel(panel, title, "optimizer step", unit)


def _draw_probes(panel, rows: PictureRows) -> None:
    probes = rows.scores["probes"]
    names = list(next(iter(probes.values())))
    height = 0.8 / len(probes)
    for index, (question, results) in enumerate(probes.items()):
        places = np.arange(len(names))[::-1] - (index - (len(probes) - 1) / 2) * height
        values, reach = error_bars(results[name] for name in names)
        panel.barh(places, values, height * 0.9, color=COLOURS[2 + index], label=question)
        panel.errorbar(values, places, xerr=reach, fmt="none", ecolor="0.25", elinewidth=0.9, capsize=2)
    panel.set_yticks(np.arange(len(names))[::-1], names)
    panel.set_xlim(0, 1.02)
    finish_panel(panel, "Linear probe of a frozen word", x=rows.spread("held-out accuracy"))
    panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _draw_mixes(panel, mixes: Mapping[str, Sequence[Any]]) -> None:
    width = 0.8 / len(mixes)
    for index, (question, weights) in enumerate(mixes.items()):
        places = np.arange(len(weights)) + (index - (len(mixes) - 1) / 2) * width
        values, reach = error_bars(weights)
        panel.bar(places, values, width * 0.9, color=COLOURS[2 + index], label=question)
        panel.errorbar(places, values, yerr=reach, fmt="none", ecolor="0.25", elinewidth=0.9, capsize=2)
    layers = len(next(iter(mixes.values())))
    panel.axhline(1 / layers, color="0.4", linestyle=":", linewidth=1)
    panel.set_xticks(range(layers), ["word itself", *(f"LSTM layer {layer}" for layer in range(1, layers))])
    finish_panel(panel, "Weights of ELMo's layers in the mix", y="learnt weight (dotted: at first)")
