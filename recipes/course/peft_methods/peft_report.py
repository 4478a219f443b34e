"""Tables and the picture of the compared tuning methods."""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_evidenceflow.evaluation.statistics import mean_t_interval
from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure
from hf_evidenceflow.report.tables import markdown_table


def summarise(runs: Mapping[str, Sequence[Mapping]]) -> dict[str, dict]:
    """
    The seeds of each method as means with intervals.

    Args:
        runs (`dict[str, Sequence[dict]]`):
            For each method what each seed measured: `trained` parameters and their `share` of the base model's,
            `seconds` of tuning, and `accuracy` by test.

    Returns:
        `dict[str, dict]`: for each method `trained`, `share`, mean `seconds`, and by test an `accuracy` with `value`,
        `low`, `high` (Student's t at 95 %, cut off at 0 and 1; `None` for a single seed) and the `seeds`' values.
    """
    summary = {}
    for name, seeds in runs.items():
        accuracies = {}
        for test in seeds[0]["accuracy"]:
            values = [seed["accuracy"][test] for seed in seeds]
            value, low, high = mean_t_interval(values)
            ends = (None, None) if math.isnan(low) else (max(0.0, low), min(1.0, high))
            accuracies[test] = {"value": value, "low": ends[0], "high": ends[1], "seeds": values}
        summary[name] = {
            "trained": seeds[0]["trained"],
            "share": seeds[0]["share"],
            "seconds": sum(seed["seconds"] for seed in seeds) / len(seeds),
            "accuracy": accuracies,
        }
    return summary


def method_table(summary: Mapping[str, Mapping]) -> str:
    """
    The methods in Markdown, in their order. Further rows of the same form may come from elsewhere.

    Args:
        summary (`dict[str, dict]`):
            As [`summarise`] gives it.

    Returns:
        `str`: the table: parameters, their share, the accuracy of each test, and seconds a run.
    """
    tests = list(next(iter(summary.values()))["accuracy"])
    rows = [
        [
            name,
            f"{method['trained']:,}",
            f"{100 * method['share']:.2f} %",
            *(_interval(method["accuracy"][test]) for test in tests),
            f"{method['seconds']:.1f}",
        ]
        for name, method in summary.items()
    ]
    return markdown_table(["", "trained", "share", *(f"accuracy, {test}" for test in tests), "seconds"], rows)


def lora_table(lora: Sequence[Mapping]) -> str:
    """
    LoRA's rank and alpha, and its merge, in Markdown.

    Args:
        lora (`Sequence[dict]`):
            Rows of `rank`, `alpha`, `trained`, `accuracy` by test, and `merge`: by dtype what
            [`~recipes.course.peft_methods.lora_merge.merge_errors`] measured.

    Returns:
        `str`: the table.
    """
    tests, dtypes = list(lora[0]["accuracy"]), list(lora[0]["merge"])
    columns = [
        *("LoRA: rank", "alpha", "trained"),
        *(f"accuracy, {test}" for test in tests),
        *(f"logits moved by the merge, {dtype}" for dtype in dtypes),
        *(f"weights after unmerging, {dtype}" for dtype in dtypes),
    ]
    rows = [
        [
            *(str(row["rank"]), str(row["alpha"]), f"{row['trained']:,}"),
            *(f"{row['accuracy'][test]:.2f}" for test in tests),
            *(f"{row['merge'][dtype]['logits']:.1e}" for dtype in dtypes),
            *(f"{row['merge'][dtype]['weights']:.1e}" for dtype in dtypes),
        ]
        for row in lora
    ]
    return markdown_table(columns, rows)


def method_rows(summary: Mapping[str, Mapping], lora: Sequence[Mapping], adapters: Mapping) -> dict[str, dict]:
    """
    What the pictures are drawn from: the seeds of one run.

    Args:
        summary (`dict[str, dict]`):
            As [`summarise`] gives it.
        lora (`Sequence[dict]`):
            As in [`lora_table`]; empty: no right panel.
        adapters (`Mapping`):
            As from [`~recipes.course.peft_methods.adapter_plots.adapter_rows`], for the second picture.

    Returns:
        `dict[str, dict]`: once of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    return {"once": {"methods": summary, "lora": lora, "adapters": adapters}}


def plot_methods(rows: PictureRows, path: str | os.PathLike) -> Path:
    """
    Left, the accuracy of the last test over the trained parameters, where methods that train nothing are a line;
    right, how far LoRA's merge moves the logits.
    """
    summary, lora = rows.once["methods"], rows.once["lora"]
    test = list(next(iter(summary.values()))["accuracy"])[-1]
    figure = new_figure((11, 4.6))
    left, *further = figure.subplots(1, 2 if lora else 1, squeeze=False, width_ratios=(2.2, 1) if lora else None)[0]
    tuned = {name: method for name, method in summary.items() if method["trained"]}
    for number, (name, method) in enumerate(tuned.items()):
        accuracy = method["accuracy"][test]
        low = accuracy["value"] if accuracy["low"] is None else accuracy["low"]
        high = accuracy["value"] if accuracy["high"] is None else accuracy["high"]
        left.errorbar(
            # Methods with equally many parameters stand side by side
            method["trained"]
            * (1 + 0.09 * sum(other["trained"] == method["trained"] for other in list(tuned.values())[:number])),
            accuracy["value"],
            yerr=[[accuracy["value"] - low], [high - accuracy["value"]]],
            color=COLOURS[number % len(COLOURS)],
            marker="osD^vP*X"[number % 8],
            markersize=7,
            capsize=3,
            linestyle="none",
            label=name,
        )
    untrained = [(name, method) for name, method in summary.items() if not method["trained"]]
    for (name, method), style in zip(untrained, itertools.cycle(LINE_STYLES[::-1])):
        left.axhline(method["accuracy"][test]["value"], color="0.5", linestyle=style, label=name)
    left.set(xscale="log", ylim=(-0.03, 1.05))
    finish_panel(left, "Accuracy over trained parameters", "trained parameters", f"accuracy, {test}")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    if lora:
        _draw_merges(further[0], lora)
    return save_figure(figure, path)


def _draw_merges(right, lora: Sequence[Mapping]) -> None:
    names = [f"r {row['rank']}\nα {row['alpha']}" for row in lora]
    for number, dtype in enumerate(lora[0]["merge"]):
        right.plot(
            names,
            [row["merge"][dtype]["logits"] for row in lora],
            marker="os"[number % 2],
            linestyle="none",
            color=COLOURS[number],
            label=dtype,
        )
    right.set_yscale("log")
    finish_panel(right, "What merging LoRA changes", y="largest difference of a logit")
    right.legend(fontsize=8, title="base weights", title_fontsize=8)


def _interval(accuracy: Mapping) -> str:
    if accuracy["low"] is None:
        return f"{accuracy['value']:.2f}"
    return f"{accuracy['value']:.2f} [{accuracy['low']:.2f}, {accuracy['high']:.2f}]"
