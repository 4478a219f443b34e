"""What each layer of the trained models of an experiment knows: lens loss, norms and effective rank, arm by arm.

The logit lens of a layer is what a model that exits there would say, so `lens_loss` is the loss of an early exit.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_evidenceflow.evaluation.statistics import mean_t_interval, paired_t_difference
from hf_evidenceflow.recipes.experiments.plots import look
from hf_evidenceflow.report.figures import finish_panel, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table


# Column of `layers.jsonl` -> title of its panel, and label of its y axis
PANELS = {
    "lens_perplexity": ("Perplexity of an exit at the layer", "exp of the lens loss"),
    "state_norm": ("Norm of the states", "mean over tokens"),
    "effective_rank": ("Effective rank of the states", "dimensions"),
    "relative_step": ("Relative step of the layer", "change / norm before it"),
}


def add_perplexity(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `lens_perplexity`, the exponential of the lens loss."""
    return [{**row, "lens_perplexity": math.exp(min(row["lens_loss"], 80.0))} for row in rows]


def layer_table(rows: Sequence[Mapping[str, Any]], group: str) -> str:
    """
    One line per arm: perplexity of exits over depth and at full depth, norm and effective rank of the last layer.

    Args:
        rows (`Sequence[Mapping]`):
            Rows of `layers.jsonl`: `group`, `arm`, `seed`, `layer` and the measures.
        group (`str`):
            Group to show.

    Returns:
        `str`: a Markdown table; means over seeds with half the width of the 95 % t interval.
    """
    rows = [row for row in rows if row["group"] == group]
    last = max(row["layer"] for row in rows)
    exits = sorted({round((last + 1) * share) - 1 for share in (1 / 3, 1 / 2, 2 / 3)} | {last})
    header = ["arm", "seeds", *(f"exit after layer {layer + 1}" for layer in exits[:-1]), "full depth"]
    header += ["half depth / full", "norm of the last layer", "effective rank of the last layer"]
    half = round((last + 1) / 2) - 1
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = {(row["seed"], row["layer"]): row for row in rows if row["arm"] == arm}
        seeds = sorted({seed for seed, _ in own})

        def over_seeds(value, digits, seeds=seeds):
            interval = mean_t_interval([value(seed) for seed in seeds])
            spread = "" if math.isnan(interval.low) else f" ± {(interval.high - interval.low) / 2:.{digits}f}"
            return f"{interval.value:.{digits}f}{spread}"

        cells = [arm, str(len(seeds))]
        cells += [over_seeds(lambda s, e=e, own=own: own[s, e]["lens_perplexity"], 1) for e in exits]
        cells.append(
            over_seeds(lambda s, own=own: own[s, half]["lens_perplexity"] / own[s, last]["lens_perplexity"], 3)
        )
        cells += [over_seeds(lambda s, name=name, own=own: own[s, last][name], 1) for name in list(PANELS)[1:3]]
        lines.append(cells)
    return markdown_table(header, lines)


def difference_table(losses: Mapping[tuple[str, str], Sequence[Sequence[float]]], group: str, baseline: str) -> str:
    """
    One line per arm: its loss, and that minus the baseline's, with the 95 % interval over the rows of the text.

    Args:
        losses (`Mapping[tuple[str, str], Sequence[Sequence[float]]]`):
            By group and arm, for each seed the losses of the same rows.
        group, baseline (`str`):
            Group to show, and the arm that the others are compared with.
    """
    means = {arm: np.mean(seeds, axis=0) for (own, arm), seeds in losses.items() if own == group}
    lines = []
    for arm, rows in means.items():
        value, low, high, _ = paired_t_difference(means[baseline], rows)
        difference = "-" if arm == baseline else f"{value:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append([arm, f"{rows.mean():.4f}", difference])
    return markdown_table(["arm", "loss", f"minus {baseline}'s (95 %, over {len(rows)} rows)"], lines)


def plot_layers(rows: Sequence[Mapping[str, Any]], group: str, path: Path) -> Path:
    """
    Draw each measure over depth, one line per arm (mean over seeds).

    Args:
        rows (`Sequence[Mapping]`):
            As in [`layer_table`].
        group (`str`):
            Group to show.
        path (`Path`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    rows = [row for row in rows if row["group"] == group]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    figure = new_figure((11.0, 7.6))
    for panel, (name, (title, unit)) in zip(figure.subplots(2, 2).ravel(), PANELS.items()):
        for index, arm in enumerate(arms):
            layers = sorted({row["layer"] for row in rows if row["arm"] == arm})
            means = [
                mean_t_interval([row[name] for row in rows if row["arm"] == arm and row["layer"] == layer]).value
                for layer in layers
            ]
            panel.plot([layer + 1 for layer in layers], means, label=arm, markersize=4, **look(index))
        finish_panel(panel, title, "after layer", unit)
        if name != "relative_step":
            panel.set_yscale("log")
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(group, fontsize=12, x=0.02, ha="left")
    return save_figure(figure, path)
