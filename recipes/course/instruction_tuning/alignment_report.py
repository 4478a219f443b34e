"""The table and the picture of several ways of alignment from the same model: reward, accuracy, KL and time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_evidenceflow.report.curves import curve
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table


def alignment_table(results: Mapping[str, Mapping]) -> str:
    """
    The results in Markdown.

    Args:
        results (`Mapping[str, Mapping]`):
            By the name of the model: `reward`, `accuracy` with `value`, `low` and `high`, `kl`, and `seconds`, which
            is `None` for the model that the others start from.

    Returns:
        `str`: one row a model.
    """
    rows = []
    for name, row in results.items():
        accuracy, seconds = row["accuracy"], row["seconds"]
        rows.append(
            [
                name,
                f"{row['reward']:.2f}",
                f"{accuracy['value']:.2f} [{accuracy['low']:.2f}, {accuracy['high']:.2f}]",
                f"{row['kl']:.2f}",
                "" if seconds is None else f"{seconds:.0f}",
            ]
        )
    return markdown_table(["", "reward model's score", "accuracy (95 %)", "KL to SFT (nats)", "seconds"], rows)


def plot_alignment(
    results: Mapping[str, Mapping], logs: Mapping[str, Sequence[Mapping]], path: str | os.PathLike
) -> Path:
    """
    Draw the reward in training, and what it brought against how far the models went.

    Args:
        results (`Mapping[str, Mapping]`):
            As in [`alignment_table`].
        logs (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by the name of the model; one without a `reward` has no curve.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    figure = new_figure((9.2, 3.6))
    left, right = figure.subplots(1, 2)
    for index, (name, row) in enumerate(results.items()):
        colour = COLOURS[index % len(COLOURS)]
        steps, rewards = curve(logs.get(name, ()), "reward")
        if steps:
            style = {"color": colour, "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
            left.plot(steps, rewards, marker="o" if len(steps) < 3 else "", label=name, **style)
        accuracy = row["accuracy"]
        spread = [[accuracy["value"] - accuracy["low"]], [accuracy["high"] - accuracy["value"]]]
        right.errorbar(row["kl"], accuracy["value"], yerr=spread, fmt="o", color=colour, capsize=3)
        right.annotate(name, (row["kl"], accuracy["value"]), xytext=(7, 5), textcoords="offset points", fontsize=9)
    left.set_title("Reward in training", fontsize=11, loc="left", fontweight="bold")
    left.set_xlabel("optimizer step", fontsize=9)
    left.set_ylabel("reward model's score, mean of a rollout", fontsize=9)
    if left.get_lines():
        left.legend(frameon=False, fontsize=9)
    right.set_title("Right answers against distance", fontsize=11, loc="left", fontweight="bold")
    right.set_xlabel("KL to the SFT model (nats a completion)", fontsize=9)
    right.set_ylabel("accuracy, with 95 % interval", fontsize=9)
    right.margins(x=0.15)
    for panel in (left, right):
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.25, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)
