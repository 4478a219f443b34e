"""The picture of the recipe: bits against perplexity, what the outlier split brings, and the students' two KLs."""

import os
from collections.abc import Mapping
from pathlib import Path

from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


def plot_compression(
    quantized: Mapping[str, Mapping],
    outliers: Mapping[str, Mapping],
    students: Mapping[str, Mapping],
    path: str | os.PathLike,
) -> Path:
    """
    Draw the results.

    Args:
        quantized (`Mapping[str, Mapping]`):
            By name: `bits` and `perplexity`.
        outliers (`Mapping[str, Mapping]`):
            By the name of the model: `errors`, with `plain` and `split`. Empty: no such panel.
        students (`Mapping[str, Mapping]`):
            By name: `reverse_kl` and `forward_kl`, each with `value`, `low` and `high`, and the `temperature` of soft
            targets. Empty: no such panel.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    swept = {row["temperature"]: row for row in students.values() if row.get("temperature")}
    count = 1 + bool(outliers) + bool(students) + (len(swept) > 1)
    columns = 2 if count == 4 else count
    figure = new_figure((4.6 * columns, 3.7 * (count // columns)))
    panels = list(figure.subplots(count // columns, columns, squeeze=False).ravel())
    markers = "osD^vPX*<>"
    for index, (name, row) in enumerate(quantized.items()):
        panels[0].plot(
            row["bits"],
            row["perplexity"],
            markers[index % len(markers)],
            color=COLOURS[index % len(COLOURS)],
            label=name,
            markersize=7,
            alpha=0.85,
        )
    panels[0].set_xscale("log", base=2)
    panels[0].set_xticks([2, 4, 8, 16, 32], ["2", "4", "8", "16", "32"])
    finish_panel(panels[0], "Bits against perplexity", "bits a weight", "perplexity, held-out text")
    panels[0].legend(frameon=False, fontsize=7)

    if outliers:
        _plot_outliers(panels[1], outliers)
    if students:
        ways = {name: row for name, row in students.items() if "T =" not in name}
        _plot_students(panels[1 + bool(outliers)], ways, markers)
    if len(swept) > 1:
        _plot_temperatures(panels[-1], dict(sorted(swept.items())))
    return save_figure(figure, path)


def _plot_outliers(panel, outliers):
    for shift, (key, label) in enumerate((("plain", "int8"), ("split", "int8, outliers split off"))):
        places = [place + 0.4 * (shift - 0.5) for place in range(len(outliers))]
        values = [100 * row["errors"][key] for row in outliers.values()]
        panel.bar(places, values, 0.38, color=COLOURS[shift], label=label)
        for place, value in zip(places, values):
            panel.annotate(f"{value:.2g}", (place, value), ha="center", va="bottom", fontsize=8)
    panel.set_xticks(range(len(outliers)), list(outliers))
    finish_panel(panel, "LLM.int8()", y="error of layer outputs (%)")
    panel.margins(y=0.25)
    panel.legend(frameon=False, fontsize=8, loc="upper left")


def _plot_temperatures(panel, swept):
    for index, (key, label) in enumerate(
        (("forward_kl", "KL(teacher || student)"), ("reverse_kl", "KL(student || teacher)"))
    ):
        values = [row[key]["value"] for row in swept.values()]
        spread = [
            [row[key]["value"] - row[key]["low"] for row in swept.values()],
            [row[key]["high"] - row[key]["value"] for row in swept.values()],
        ]
        style = {"color": COLOURS[index], "linestyle": LINE_STYLES[index], "marker": "os"[index]}
        panel.errorbar(list(swept), values, yerr=spread, capsize=3, label=label, **style)
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(swept), [f"{temperature:g}" for temperature in swept])
    panel.set_ylim(bottom=0)
    finish_panel(panel, "Temperature of distillation", "temperature of the soft targets", "KL, nats per completion")
    panel.legend(frameon=False, fontsize=8)


def _plot_students(panel, students, markers):
    for index, (name, row) in enumerate(students.items()):
        x, y = row["forward_kl"], row["reverse_kl"]
        panel.errorbar(
            x["value"],
            y["value"],
            xerr=[[x["value"] - x["low"]], [x["high"] - x["value"]]],
            yerr=[[y["value"] - y["low"]], [y["high"] - y["value"]]],
            fmt=markers[index % len(markers)],
            color=COLOURS[index % len(COLOURS)],
            capsize=2,
            label=name,
        )
    finish_panel(panel, "Students", "KL(teacher || student), nats", "KL(student || teacher), nats")
    panel.legend(frameon=False, fontsize=8)
