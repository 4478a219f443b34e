"""The table and the picture of several ways of alignment from the same model: reward, accuracy, KL and time."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows, thinned
from hf_evidenceflow.recipes.course.shared.seed_plots import draw_curve, error_bars, note_seeds
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure
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


def alignment_rows(
    results: Mapping[str, Mapping],
    logs: Mapping[str, Sequence[Mapping]],
    chains: Mapping[str, Mapping],
    measured: Mapping[str, float],
) -> dict[str, dict]:
    """
    What the picture is drawn from, and what was measured on the way.

    Args:
        results (`Mapping[str, Mapping]`):
            As in [`alignment_table`].
        logs (`Mapping[str, Sequence[Mapping]]`):
            `trainer.state.log_history` by the name of the model; one without a `reward` or a `kl` has no such curve.
        chains (`Mapping[str, Mapping]`):
            As in [`chain_table`].
        measured (`Mapping[str, float]`):
            Further scores by name.

    Returns:
        `dict[str, dict]`: curves and scores of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    models = {name: {key: row[key] for key in ("reward", "accuracy", "kl")} for name, row in results.items()}
    curves = {name: thinned(log, ["reward", "kl"]) for name, log in logs.items()}
    return {"curves": curves, "scores": {"models": models, "chains": chains, **measured}}


def plot_alignment(rows: PictureRows, path: str | os.PathLike) -> Path:
    """
    Draw the reward and the KL in training, what it brought against how far the models went, and what a chain brings,
    from [`alignment_rows`], into a PNG.
    """
    figure = new_figure((9.6, 7.2))
    panels = figure.subplots(2, 2)
    _draw_logs(panels[0, 0], rows, "reward", "Reward in training", "reward model's score, mean of a rollout")
    _draw_logs(panels[0, 1], rows, "kl", "Distance in training", "KL to the SFT model (nats per token)")
    _draw_distance(panels[1, 0], rows)
    _draw_chains(panels[1, 1], rows)
    note_seeds(figure, rows)
    return save_figure(figure, path)


def _draw_logs(panel, rows: PictureRows, key: str, title: str, unit: str) -> None:
    order = list(rows.scores["models"])
    for name, curves in rows.curves.items():
        if key in curves:
            draw_curve(panel, curves[key], order.index(name), name)
    if panel.get_lines():
        panel.legend(frameon=False, fontsize=9)
    else:
        panel.text(0.5, 0.5, "not logged", ha="center", transform=panel.transAxes)
    finish_panel(panel, title, "optimizer step", unit)


def _draw_distance(panel, rows: PictureRows) -> None:
    for index, (name, row) in enumerate(rows.scores["models"].items()):
        (accuracy, up), (kl, along) = error_bars([row["accuracy"]]), error_bars([row["kl"]])
        colour = COLOURS[index % len(COLOURS)]
        panel.errorbar(kl, accuracy, yerr=up, xerr=along, fmt="o", color=colour, capsize=3, label=name)
    panel.margins(x=0.15)
    panel.legend(frameon=False, fontsize=9)
    quantity = "KL to the SFT model (nats per completion)"
    finish_panel(panel, "Right answers against distance", quantity, rows.spread("accuracy"))


def _draw_chains(panel, rows: PictureRows) -> None:
    chains = rows.scores["chains"]
    values, reach = error_bars(chains.values())
    panel.bar(range(len(values)), values, 0.6, color=COLOURS[: len(values)], yerr=reach, capsize=3)
    panel.set_xticks(range(len(values)), [name.replace(", ", ",\n") for name in chains])
    finish_panel(panel, "With and without a chain of thought", "", rows.spread("accuracy"))
