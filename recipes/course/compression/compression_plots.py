"""The picture of the recipe: bits against perplexity, what the outlier split brings, and the students' two KLs."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows
from hf_evidenceflow.recipes.course.shared.seed_plots import error_bars, note_seeds
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


MARKERS = "osD^vPX*<>"


def compression_rows(
    quantized: Mapping[str, Mapping], outliers: Mapping[str, Mapping], students: Mapping[str, Mapping]
) -> dict[str, dict]:
    """
    What the picture is drawn from.

    Args:
        quantized (`Mapping[str, Mapping]`):
            By name: `bits` and `perplexity`.
        outliers (`Mapping[str, Mapping]`):
            By the name of the model: `errors`, with `plain` and `split`. Empty: no such panel.
        students (`Mapping[str, Mapping]`):
            By name: `reverse_kl` and `forward_kl`, each with `value`, `low` and `high`, and the `temperature` of soft
            targets. Empty: no such panel.

    Returns:
        `dict[str, dict]`: scores of [`~recipes.course.shared.picture_rows.PictureRows`].
    """

    def only(rows: Mapping[str, Mapping], *keys: str) -> dict:
        return {name: {key: row.get(key) for key in keys} for name, row in rows.items()}

    errors = only({name: row["errors"] for name, row in outliers.items()}, "plain", "split")
    weights, scored = only(quantized, "bits", "perplexity"), only(students, "forward_kl", "reverse_kl", "temperature")
    return {"scores": {"weights": weights, "outliers": errors, "students": scored}}


def plot_compression(rows: PictureRows, path: str | os.PathLike) -> Path:
    """Draw what [`compression_rows`] has into a PNG."""
    outliers, students = rows.scores["outliers"], rows.scores["students"]
    swept = {row["temperature"]: row for row in students.values() if row["temperature"]}
    count = 1 + bool(outliers) + bool(students) + (len(swept) > 1)
    columns = 2 if count == 4 else count
    figure = new_figure((4.6 * columns, 3.7 * (count // columns)))
    panels = list(figure.subplots(count // columns, columns, squeeze=False).ravel())
    _plot_weights(panels[0], rows.scores["weights"])
    if outliers:
        _plot_outliers(panels[1], outliers)
    if students:
        _plot_students(panels[1 + bool(outliers)], {name: row for name, row in students.items() if "T =" not in name})
    if len(swept) > 1:
        _plot_temperatures(panels[-1], dict(sorted(swept.items())))
    note_seeds(figure, rows)
    return save_figure(figure, path)


def _plot_weights(panel, weights: Mapping[str, Mapping[str, Any]]) -> None:
    for index, (name, row) in enumerate(weights.items()):
        perplexity, reach = error_bars([row["perplexity"]])
        style = {"color": COLOURS[index % len(COLOURS)], "fmt": MARKERS[index % len(MARKERS)], "markersize": 7}
        panel.errorbar(row["bits"], perplexity, yerr=reach, label=name, alpha=0.85, capsize=2, **style)
    panel.set_xscale("log", base=2)
    panel.set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
    finish_panel(panel, "Bits against perplexity", "bits a weight", "perplexity, held-out text")
    panel.legend(frameon=False, fontsize=7)


def _plot_outliers(panel, outliers: Mapping[str, Mapping[str, Any]]) -> None:
    for shift, (key, label) in enumerate((("plain", "int8"), ("split", "int8, outliers split off"))):
        places = [place + 0.4 * (shift - 0.5) for place in range(len(outliers))]
        values, reach = error_bars(row[key] for row in outliers.values())
        bars = panel.bar(places, 100 * values, 0.38, color=COLOURS[shift], label=label)
        panel.bar_label(bars, [f"{100 * value:.2g}" for value in values], fontsize=8)
        if reach is not None:
            panel.errorbar(places, 100 * values, yerr=100 * reach, fmt="none", ecolor="0.25", capsize=2)
    panel.set_xticks(range(len(outliers)), list(outliers))
    finish_panel(panel, "LLM.int8()", y="error of layer outputs (%)")
    panel.margins(y=0.25)
    panel.legend(frameon=False, fontsize=8, loc="upper left")


def _plot_temperatures(panel, swept: Mapping[float, Mapping[str, Any]]) -> None:
    for index, (key, label) in enumerate(
        (("forward_kl", "KL(teacher || student)"), ("reverse_kl", "KL(student || teacher)"))
    ):
        values, reach = error_bars(row[key] for row in swept.values())
        style = {"color": COLOURS[index], "linestyle": LINE_STYLES[index], "marker": "os"[index]}
        panel.errorbar(list(swept), values, yerr=reach, capsize=3, label=label, **style)
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(swept), [f"{temperature:g}" for temperature in swept])
    panel.set_ylim(bottom=0)
    finish_panel(panel, "Temperature of distillation", "temperature of the soft targets", "KL, nats per completion")
    panel.legend(frameon=False, fontsize=8)


def _plot_students(panel, students: Mapping[str, Mapping[str, Any]]) -> None:
    for index, (name, row) in enumerate(students.items()):
        (x, along), (y, up) = error_bars([row["forward_kl"]]), error_bars([row["reverse_kl"]])
        style = {"color": COLOURS[index % len(COLOURS)], "fmt": MARKERS[index % len(MARKERS)], "capsize": 2}
        panel.errorbar(x, y, xerr=along, yerr=up, label=name, **style)
    finish_panel(panel, "Students", "KL(teacher || student), nats", "KL(student || teacher), nats")
    panel.legend(frameon=False, fontsize=8)
