"""The measurements of early exit as tables and as a picture."""

import math
import os
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ..report.figures import COLOURS, finish_panel, new_figure, save_figure
from ..report.tables import markdown_table


def exit_tables(
    exits: Sequence[Mapping], thresholds: Sequence[Mapping], full_speed: float
) -> list[tuple[str, list[str], list[list[str]]]]:
    """
    Title, columns and cells of the two tables, with the tokens per second at full depth.

    All rows have the fields of [`ExitQuality`] and `speed`, the fields of [`Speed`]; those of `exits` also
    `accept_rate` and `self_speculation_speed` (`None` where there is none), those of `thresholds` also `threshold` and
    `generated_depth`.
    """
    head = ["perplexity", "accuracy", "agreement", "tokens/s", "ratio"]

    def common(row):
        speed = row["speed"]
        low, high = row["agreement_95"]
        interval = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        shares = [f"{row['perplexity']:.2f}", f"{row['accuracy']:.3f}", f"{row['agreement']:.3f}{interval}"]
        return [*shares, f"{speed['tokens_per_second']:.1f}", f"{speed['ratio']:.2f}x"]

    def speculation(row):
        speed = row["self_speculation_speed"]
        return ["-", "-"] if speed is None else [f"{row['accept_rate']:.3f}", f"{speed['ratio']:.2f}x"]

    return [
        (
            f"Exit after a fixed number of layers (full depth: {full_speed:.1f} tokens/s)",
            ["layers", *head, "accept rate", "self-speculation"],
            [[str(row["depth"]), *common(row), *speculation(row)] for row in exits],
        ),
        (
            "Exit by a criterion, per token",
            ["threshold", "average layers", *head, "average layers, generated"],
            [
                [f"{row['threshold']:g}", f"{row['depth']:.2f}", *common(row), f"{row['generated_depth']:.2f}"]
                for row in thresholds
            ],
        ),
    ]


def print_tables(tables: Sequence[tuple[str, list[str], list[list[str]]]]) -> str:
    """Print tables of [`exit_tables`] to the terminal; returns them in Markdown."""
    markdown = []
    for title, columns, rows in tables:
        table = Table(title=title)
        for column in columns:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        markdown.append(f"## {title}\n\n{markdown_table(columns, rows, align='r')}")
    return "\n\n".join(markdown)


def draw_exits(exits: Sequence[Mapping], thresholds: Sequence[Mapping], path: str | os.PathLike) -> None:
    """Draw agreement and speed of the rows of [`exit_tables`] over the (average) number of layers, as a PNG."""
    figure = new_figure((9.6, 3.6))
    quality, speed = figure.subplots(1, 2)
    ratios = [[row["speed"]["ratio"] for row in rows] for rows in (exits, thresholds)]
    depths = [[row["depth"] for row in exits], [row["depth"] for row in thresholds]]
    for panel, values in (
        (quality, [[row["agreement"] for row in rows] for rows in (exits, thresholds)]),
        (speed, ratios),
    ):
        panel.plot(depths[0], values[0], color=COLOURS[0], marker="o", label="fixed exit")
        panel.plot(depths[1], values[1], color=COLOURS[1], marker="s", linestyle="--", label="exit by a criterion")
    speculated = [row for row in exits if row["self_speculation_speed"] is not None]
    if speculated:
        speed.plot(
            [row["depth"] for row in speculated],
            [row["self_speculation_speed"]["ratio"] for row in speculated],
            color=COLOURS[2],
            marker="^",
            linestyle="-.",
            label="self-speculation from there",
        )
    speed.axhline(1.0, color="0.5", linewidth=0.8)
    finish_panel(quality, "Agreement", "layers run, mean over tokens", "agreement with full depth")
    finish_panel(speed, "Speed", "layers run, mean over tokens", "tokens/s, ratio to full depth")
    quality.legend(fontsize=8)
    speed.legend(fontsize=8)
    save_figure(figure, path)
