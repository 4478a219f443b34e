"""The picture of contextual pretraining: two training curves, the probes, and the weights that ELMo's mix learnt."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_evidenceflow.report.curves import curve
from hf_evidenceflow.report.figures import COLOURS, new_figure, save_figure


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
    figure = new_figure((9.6, 3.4 if not probes else 7.2))
    panels = figure.subplots(2 if probes else 1, 2).ravel()
    for index, (name, log) in enumerate(logs.items()):
        steps, losses = curve(log, "loss")
        panels[index].plot(steps, losses, color=COLOURS[index], linewidth=1.2)
        panels[index].set_title(f"{name} in training", fontsize=11, loc="left", fontweight="bold")
        panels[index].set_xlabel("optimizer step", fontsize=9)
        panels[index].set_ylim(bottom=0)
    panels[0].set_ylabel("loss, both directions (nats a word)", fontsize=9)
    panels[1].set_ylabel("loss, masked token + next sentence (nats)", fontsize=9)
    if probes:
        _draw_probes(panels[2], probes)
        _draw_mixes(panels[3], mixes)
    for panel in panels:
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)


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
    panel.set_title("Linear probe of a frozen word", fontsize=11, loc="left", fontweight="bold")
    panel.set_xlabel("held-out accuracy, with 95 % interval", fontsize=9)
    panel.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)


def _draw_mixes(panel, mixes: Mapping[str, Sequence[float]]) -> None:
    width = 0.8 / len(mixes)
    for index, (question, weights) in enumerate(mixes.items()):
        places = np.arange(len(weights)) + (index - (len(mixes) - 1) / 2) * width
        panel.bar(places, weights, width * 0.9, color=COLOURS[2 + index], label=question)
    layers = len(next(iter(mixes.values())))
    panel.axhline(1 / layers, color="0.4", linestyle=":", linewidth=1)
    panel.set_xticks(range(layers), ["word itself", *(f"LSTM layer {layer}" for layer in range(1, layers))])
    panel.set_title("Weights of ELMo's layers in the mix", fontsize=11, loc="left", fontweight="bold")
    panel.set_ylabel("learnt weight (dotted: at first)", fontsize=9)
