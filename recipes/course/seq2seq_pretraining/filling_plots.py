"""The picture of the recipe: both training losses, and the gaps that each model filled right by their length."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_evidenceflow.evaluation.statistics import Interval
from hf_evidenceflow.report.curves import curve
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, new_figure, save_figure


def plot_filling(
    logs: Mapping[str, Sequence[Mapping]], shares: Mapping[str, Mapping[int, Interval]], path: str | os.PathLike
) -> Path:
    """
    Draw both panels.

    Args:
        logs (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by the name of the model.
        shares (`Mapping[str, Mapping[int, Interval]]`):
            Share of the gaps filled right, by the way of filling and the length of the gap.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    figure = new_figure((9.6, 3.8))
    left, right = figure.subplots(1, 2)
    for index, (name, log) in enumerate(logs.items()):
        steps, losses = curve(log, "loss")
        left.plot(steps, losses, color=COLOURS[index], linestyle=LINE_STYLES[index], label=name)
    for index, (name, by_length) in enumerate(shares.items()):
        lengths = sorted(by_length)
        values = [by_length[length] for length in lengths]
        spread = [[item.value - item.low for item in values], [item.high - item.value for item in values]]
        places = [length + 0.08 * (index - (len(shares) - 1) / 2) for length in lengths]
        right.errorbar(
            places,
            [item.value for item in values],
            yerr=spread,
            fmt="o",
            linestyle=LINE_STYLES[index],
            color=COLOURS[index],
            markersize=4,
            capsize=3,
            label=name,
        )
    left.set_title("Training loss", fontsize=11, loc="left", fontweight="bold")
    left.set_xlabel("optimizer step", fontsize=9)
    left.set_ylabel("nats per predicted token", fontsize=9)
    right.set_title("Gaps filled right", fontsize=11, loc="left", fontweight="bold")
    right.set_xlabel("tokens in the gap", fontsize=9)
    right.set_ylabel("share, with 95 % interval", fontsize=9)
    right.set_xticks(sorted(next(iter(shares.values()))))
    right.set_ylim(-0.03, 1.03)
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)
