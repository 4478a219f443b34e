"""The table and the picture of several ways of alignment from the same model: reward, accuracy, KL and time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_evidenceflow.report.curves import curve
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure
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


def chain_table(chains: Mapping[str, Mapping]) -> str:
    """Right answers by what the SFT model is asked to write: rows of `value`, `low` and `high`, in Markdown."""
    rows = [[name, f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"] for name, row in chains.items()]
    return markdown_table(["SFT model, asked for", "accuracy (95 %)"], rows)


def plot_alignment(
    results: Mapping[str, Mapping],
    logs: Mapping[str, Sequence[Mapping]],
    chains: Mapping[str, Mapping],
    path: str | os.PathLike,
) -> Path:
    """
    Draw the reward and the KL in training, what it brought against how far the models went, and what a chain brings.

    Args:
        results (`Mapping[str, Mapping]`):
            As in [`alignment_table`].
        logs (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by the name of the model; one without a `reward` or a `kl` has no such curve.
        chains (`Mapping[str, Mapping]`):
            As in [`chain_table`].
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    figure = new_figure((9.6, 7.2))
    panels = figure.subplots(2, 2)
    order = list(results)
    _draw_logs(panels[0, 0], logs, order, "reward", "Reward in training", "reward model's score, mean of a rollout")
    _draw_logs(panels[0, 1], logs, order, "kl", "Distance in training", "KL to the SFT model (nats per token)")
    _draw_distance(panels[1, 0], results)
    _draw_chains(panels[1, 1], chains)
    return save_figure(figure, path)


def _draw_logs(panel, logs, order: Sequence[str], key: str, title: str, unit: str) -> None:
    for name, log in logs.items():
        steps, values = curve(log, key)
        if steps:
            index = order.index(name)
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
            panel.plot(steps, values, marker="o" if len(steps) < 3 else "", label=name, **style)
    if panel.get_lines():
        panel.legend(frameon=False, fontsize=9)
    else:
        panel.text(0.5, 0.5, "not logged", ha="center", transform=panel.transAxes)
    finish_panel(panel, title, "optimizer step", unit)


def _draw_distance(panel, results: Mapping[str, Mapping]) -> None:
    for index, (name, row) in enumerate(results.items()):
        colour, accuracy = COLOURS[index % len(COLOURS)], row["accuracy"]
        spread = [[accuracy["value"] - accuracy["low"]], [accuracy["high"] - accuracy["value"]]]
        panel.errorbar(row["kl"], accuracy["value"], yerr=spread, fmt="o", color=colour, capsize=3, label=name)
    panel.margins(x=0.15)
    panel.legend(frameon=False, fontsize=9)
    finish_panel(
        panel,
        "Right answers against distance",
        "KL to the SFT model (nats per completion)",
        "accuracy, with 95 % interval",
    )


def _draw_chains(panel, chains: Mapping[str, Mapping]) -> None:
    values = [row["value"] for row in chains.values()]
    spread = [
        [row["value"] - row["low"] for row in chains.values()],
        [row["high"] - row["value"] for row in chains.values()],
    ]
    panel.bar(range(len(values)), values, 0.6, color=COLOURS[: len(values)], yerr=spread, capsize=3)
    panel.set_xticks(range(len(values)), [name.replace(", ", ",\n") for name in chains])
    finish_panel(panel, "With and without a chain of thought", "", "accuracy, with 95 % interval")
