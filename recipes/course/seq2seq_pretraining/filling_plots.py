"""The picture of the recipe: both training losses, and the gaps that each model filled right by their length."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_evidenceflow.evaluation.statistics import Interval
from hf_evidenceflow.report.curves import curve
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


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
    finish_panel(left, "Training loss", "optimizer step", "nats per predicted token")
    finish_panel(right, "Gaps filled right", "tokens in the gap", "share, with 95 % interval")
    right.set_xticks(sorted(next(iter(shares.values()))))
    right.set_ylim(-0.03, 1.03)
    for panel in (left, right):
        panel.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
