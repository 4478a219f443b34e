"""Parts of pictures that show one seed or several: curves with a band, error bars, and what both mean."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows, interval
from hf_evidenceflow.report.curves import centred_mean
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES


def draw_curve(panel, curve: Mapping[str, list], index: int, label: str, smooth: int = 1) -> None:
    """
    Draw the mean over the seeds; behind it the band from the least to the greatest, or what a single seed logged.

    Args:
        panel (`matplotlib.axes.Axes`):
            Where to draw.
        curve (`Mapping[str, list]`):
            `steps`, and `runs` with the values of each seed.
        index (`int`):
            Place of the color and the style of the line.
        label (`str`):
            Entry of the legend.
        smooth (`int`, *optional*, defaults to `1`):
            Values of a run that each point is the mean of.
    """
    steps, runs = curve["steps"], curve["runs"]
    smoothed = np.array([centred_mean(values, smooth) for values in runs])
    color = COLOURS[index % len(COLOURS)]
    if len(runs) > 1:
        panel.fill_between(steps, smoothed.min(0), smoothed.max(0), color=color, alpha=0.2, linewidth=0)
    elif smooth > 1:
        panel.plot(steps, runs[0], color="0.8", linewidth=0.7)
    marker = "o" if len(steps) < 3 else ""
    style = LINE_STYLES[index % len(LINE_STYLES)]
    panel.plot(steps, smoothed.mean(0), color=color, linestyle=style, marker=marker, label=label)


def error_bars(scores: Iterable[Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Values, of shape `(N,)`, and how far their intervals reach down and up, `(2, N)`; `None` if none has one."""
    intervals = [interval(score) for score in scores]
    values = np.array([each.value for each in intervals])
    reach = np.array([[each.value - each.low for each in intervals], [each.high - each.value for each in intervals]])
    return values, reach if reach.any() else None


def note_seeds(figure, rows: PictureRows, of_first: str = "") -> None:
    """Say below a picture of several seeds what its marks are; `of_first` is what the first seed alone has drawn."""
    if len(rows.seeds) > 1:
        note = f"Mean of seeds {', '.join(map(str, rows.seeds))}; bands and error bars: least to greatest"
        note += f"; {of_first}: seed {rows.seeds[0]}" if of_first else ""
        figure.supxlabel(note, fontsize=8, color="0.3")
