"""The picture of the recipe: the loss over the evaluations spent, and what the prompts found do on held-out items."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


def search_rows(
    histories: Mapping[str, Sequence[Sequence[tuple[int, float]]]],
    levels: Mapping[str, float],
    accuracies: Mapping[str, Sequence[float]],
) -> dict[str, dict]:
    """
    What the picture is drawn from: the seeds of one run.

    Args:
        histories (`Mapping[str, Sequence]`):
            By the way of searching, for each seed the evaluations spent and the best loss.
        levels (`Mapping[str, float]`):
            Losses of prompts that need no search, by their name, mean over the seeds.
        accuracies (`Mapping[str, Sequence[float]]`):
            Held-out accuracy by the kind of prompt, one a seed.

    Returns:
        `dict[str, dict]`: once of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    return {"once": {"histories": histories, "levels": levels, "accuracies": accuracies}}


def plot_search(rows: PictureRows, path: str | os.PathLike) -> Path:
    """Draw both panels of [`search_rows`] into a PNG."""
    histories, levels, accuracies = (rows.once[name] for name in ("histories", "levels", "accuracies"))
    figure = new_figure((9.6, 3.8))
    left, right = figure.subplots(1, 2)
    for index, (name, runs) in enumerate(histories.items()):
        for number, history in enumerate(runs):
            spent, losses = zip(*history)
            left.step(
                spent,
                losses,
                where="post",
                color=COLOURS[index],
                linestyle=LINE_STYLES[index],
                linewidth=1.3,
                label=name if number == 0 else None,
            )
    for index, (name, loss) in enumerate(levels.items()):
        left.axhline(loss, color="grey", linestyle=LINE_STYLES[2 + index], linewidth=1, label=name)
    for place, values in enumerate(accuracies.values()):
        right.plot(values, np.full(len(values), place), "o", color=COLOURS[place % len(COLOURS)], alpha=0.7)
        right.plot(np.mean(values), place, "|", color=COLOURS[place % len(COLOURS)], markersize=22, markeredgewidth=2)
    right.set_yticks(range(len(accuracies)), list(accuracies))
    right.invert_yaxis()
    right.set_xlim(-0.03, 1.03)
    finish_panel(left, "Search", "evaluations spent (a gradient counts as 3)", "loss on the items of the search")
    left.legend(loc="upper right", bbox_to_anchor=(1, 0.94), fontsize=8, edgecolor="none", framealpha=0.85)
    finish_panel(right, "Held-out items", x="accuracy (a dot a seed, a bar their mean)")
    return save_figure(figure, path)
