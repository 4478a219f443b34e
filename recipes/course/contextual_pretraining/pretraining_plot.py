"""The picture of contextual pretraining: each training loss apart, the probes, the weights that ELMo's mix learnt."""

import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from hf_evidenceflow.report.curves import centred_mean, curve
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


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


def plot_pretraining(
    logs: Mapping[str, Sequence[Mapping]],
    probes: Mapping[str, Mapping[str, Mapping]],
    mixes: Mapping[str, Sequence[float]],
    path: str | os.PathLike,
) -> Path:
    """
    Draw the curves, and what the probes found if there are any.

    Args:
        logs (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by model.
        probes (`Mapping[str, Mapping[str, Mapping]]`):
            By question and representation: `value`, `low` and `high` of the accuracy; the last one of each question is
            the majority's.
        mixes (`Mapping[str, Sequence[float]]`):
            Weights of ELMo's layers by question.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    drawn = [
        partial(_draw_curves, log=logs[name], title=title, unit=unit, parts=parts, level=level)
        for name, title, unit, parts, level in CURVES
        if name in logs
    ]
    if probes:
        drawn.append(partial(_draw_probes, probes=probes))
    if mixes:
        drawn.append(partial(_draw_mixes, mixes=mixes))
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = new_figure((4.4 * columns, 3.6 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, draw in zip(panels, drawn):
        draw(panel)
    for panel in panels[len(drawn) :]:
        panel.set_visible(False)
    return save_figure(figure, path)


def _draw_curves(panel, log, title: str, unit: str, parts: Mapping[str, str], level: tuple[float, str] | None) -> None:
    for index, (key, label) in enumerate(parts.items()):
        steps, losses = curve(log, key)
        panel.plot(steps, losses, color="0.8", linewidth=0.7)
        panel.plot(
            steps,
            centred_mean(losses, max(1, len(losses) // 20)),
            color=COLOURS[index],
            linestyle=LINE_STYLES[index],
            label=label,
        )
    if level is not None:
        panel.axhline(level[0], color="0.35", linestyle=":", linewidth=1, label=level[1])
    panel.legend(frameon=False, fontsize=8)
    finish_panel(panel, title, "optimizer step", unit)


def _draw_probes(panel, probes: Mapping[str, Mapping[str, Mapping]]) -> None:
    names = list(next(iter(probes.values())))
    height = 0.8 / len(probes)
    for index, (question, results) in enumerate(probes.items()):
        places = np.arange(len(names))[::-1] - (index - (len(probes) - 1) / 2) * height
        values = np.array([results[name]["value"] for name in names])
        spread = np.array(
            [[results[n]["value"] - results[n]["low"], results[n]["high"] - results[n]["value"]] for n in names]
        )
        panel.barh(places, values, height * 0.9, color=COLOURS[2 + index], label=question)
        panel.errorbar(values, places, xerr=spread.T, fmt="none", ecolor="0.25", elinewidth=0.9, capsize=2)
    panel.set_yticks(np.arange(len(names))[::-1], names)
    panel.set_xlim(0, 1.02)
    finish_panel(panel, "Linear probe of a frozen word", x="held-out accuracy, with 95 % interval")
    panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _draw_mixes(panel, mixes: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / len(mixes)
    for index, (question, weights) in enumerate(mixes.items()):
        places = np.arange(len(weights)) + (index - (len(mixes) - 1) / 2) * width
        panel.bar(places, weights, width * 0.9, color=COLOURS[2 + index], label=question)
    layers = len(next(iter(mixes.values())))
    panel.axhline(1 / layers, color="0.4", linestyle=":", linewidth=1)
    panel.set_xticks(range(layers), ["word itself", *(f"LSTM layer {layer}" for layer in range(1, layers))])
    finish_panel(panel, "Weights of ELMo's layers in the mix", y="learnt weight (dotted: at first)")
