"""The picture of word vectors: pairs of words in two dimensions, and the accuracy of the analogies."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_evidenceflow.recipes.course.shared.picture_rows import PictureRows
from hf_evidenceflow.recipes.course.shared.seed_plots import error_bars, note_seeds
from hf_evidenceflow.recipes.course.word_vectors.analogies import ALL_RELATIONS, AnalogyScore
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure


def principal_components(points: np.ndarray, components: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """
    Project points on the directions in which they vary most.

    Args:
        points (`np.ndarray` of shape `(N, H)`):
            Points.
        components (`int`, *optional*, defaults to `2`):
            Directions K.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: coordinates of shape `(N, K)`, and the share of the variance of each
        direction, of shape `(K,)`.
    """
    centred = points - points.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    variance = scale**2
    return left[:, :components] * scale[:components], variance[:components] / max(variance.sum(), 1e-30)


def spread_labels(heights: np.ndarray, gap: float) -> np.ndarray:
    """
    Move labels apart that would stand on each other, each as little as that takes.

    Args:
        heights (`np.ndarray` of shape `(N,)`):
            Heights of their points.
        gap (`float`):
            Smallest distance of two labels.

    Returns:
        `np.ndarray` of shape `(N,)`: heights of the labels, in the order of the points.
    """
    order = np.argsort(heights, kind="stable")
    # Least squares under "each at least `gap` above the last" is isotonic regression once the gaps are taken off
    from scipy.optimize import isotonic_regression

    steps = gap * np.arange(len(heights))
    result = np.empty(len(heights))
    result[order] = isotonic_regression(heights[order] - steps).x + steps
    return result


def vector_rows(
    vectors: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    words: Sequence[str],
    scores: Mapping[str, Mapping[str, AnalogyScore]],
) -> dict[str, dict]:
    """
    What the picture is drawn from.

    Args:
        vectors (`Mapping[str, gensim.models.KeyedVectors]`):
            Up to three methods' vectors.
        pairs (`Sequence[tuple[str, str]]`):
            Pairs of words to draw with a line from the first to the second.
        words (`Sequence[str]`):
            Words to draw where there is no pair.
        scores (`Mapping[str, Mapping[str, AnalogyScore]]`):
            Score of each method by relation.

    Returns:
        `dict[str, dict]`: scores and once of [`~recipes.course.shared.picture_rows.PictureRows`].
    """
    shown = [word for pair in pairs for word in pair] or list(words)
    planes = {}
    for name, keyed in vectors.items():
        places, shares = principal_components(np.stack([keyed.get_vector(word, norm=True) for word in shown]))
        planes[name] = {"places": places.tolist(), "shares": shares.tolist()}
    intervals = {name: {key: score.interval() for key, score in by.items()} for name, by in scores.items()}
    accuracy = {
        name: {key: found._asdict() for key, found in by.items() if found is not None}
        for name, by in intervals.items()
    }
    return {
        "scores": {"analogies": accuracy},
        "once": {"words": shown, "in_pairs": bool(pairs), "planes": planes},
    }


def plot_word_vectors(vectors, pairs, words, scores, path: str | os.PathLike) -> Path:
    """Draw a panel for each method, and one of bars, into a PNG; the other arguments are those of [`vector_rows`]."""
    return plot_vector_rows(PictureRows("word_vectors", [0], {}, **vector_rows(vectors, pairs, words, scores)), path)


def plot_vector_rows(rows: PictureRows, path: str | os.PathLike) -> Path:
    """Draw the panels of [`vector_rows`] into a PNG."""
    figure = new_figure((11, 8.6))
    *panels, bars = figure.subplots(2, 2).ravel()
    for panel, (name, plane) in zip(panels, rows.once["planes"].items()):
        _draw_words(panel, np.array(plane["places"]), rows.once["words"], rows.once["in_pairs"])
        first, second = plane["shares"]
        x, y = f"first component, {first:.0%} of the variance", f"second component, {second:.0%}"
        finish_panel(panel, name, x, y)
        panel.margins(x=0.16, y=0.08)
    for panel in panels[len(rows.once["planes"]) :]:
        panel.set_visible(False)
    _draw_bars(bars, rows)
    note_seeds(figure, rows, "words in two dimensions")
    return save_figure(figure, path)


def _draw_words(panel, places: np.ndarray, words: Sequence[str], in_pairs: bool) -> None:
    # One column of labels at each side of the lines; without pairs, all to the right of their points
    columns = [range(0, len(words), 2), range(1, len(words), 2)] if in_pairs else [range(len(words))]
    width, height = np.ptp(places, axis=0)
    for number, column in enumerate(columns):
        other = places[[index + 1 - 2 * number for index in column]] if in_pairs else places[list(column)] - 1
        heights = spread_labels(places[list(column), 1], 0.031 * height) if in_pairs else places[list(column), 1]
        for index, opposite, label_height in zip(column, other, heights):
            side = 1 if places[index, 0] > opposite[0] else -1
            panel.plot(*places[index], "o", color=COLOURS[number], markersize=4)
            panel.text(
                places[index, 0] + 0.015 * side * width,
                label_height,
                words[index],
                fontsize=7,
                color=COLOURS[number],
                ha="left" if side > 0 else "right",
                va="center",
            )
    if in_pairs:
        for first, second in zip(places[::2], places[1::2]):
            panel.plot(*zip(first, second), color="0.6", linewidth=0.8, zorder=0)


def _draw_bars(panel, rows: PictureRows) -> None:
    accuracy = rows.scores["analogies"]
    relations = [name for name in next(iter(accuracy.values())) if name != ALL_RELATIONS]
    width = 0.8 / len(accuracy)
    for index, (name, by_relation) in enumerate(accuracy.items()):
        values, reach = error_bars(by_relation[name] for name in relations)
        places = np.arange(len(relations)) + (index - (len(accuracy) - 1) / 2) * width
        panel.bar(places, values, width * 0.92, color=COLOURS[index % len(COLOURS)], label=name)
        if relations:
            panel.errorbar(places, values, yerr=reach, fmt="none", ecolor="0.25", elinewidth=0.9, capsize=2)
    finish_panel(panel, "Analogies", y=rows.spread("accuracy"))
    panel.set_ylim(0, 1.28)
    panel.set_yticks(np.linspace(0, 1, 6))
    if relations:
        panel.set_xticks(range(len(relations)), relations)
        panel.legend(frameon=False, fontsize=8, ncols=1, loc="upper right")
    else:
        panel.set_xticks([])
        panel.text(0.5, 0.5, "the text has the words of no question", ha="center", transform=panel.transAxes)
