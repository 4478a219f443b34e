"""A [`ProbeResult`] as pictures: heat maps of layers over tokens, and the way of each token through the layers."""

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..report.figures import finish_panel, new_figure, save_figure, token_fonts
from .probe import ProbeResult
from .texts import visible


class HeatMap(NamedTuple):
    """
    How a measure is drawn.

    Args:
        title (`str`):
            What it is, with its unit.
        colours (`str`):
            matplotlib colour map.
        scale (`str`):
            `"linear"`, `"log"`, or `"symmetric"` around 0.
    """

    title: str
    colours: str
    scale: str


HEAT_MAPS = {
    "lens_loss": HeatMap("Logit-lens cross-entropy of the right next token (nats)", "viridis_r", "linear"),
    "label_rank": HeatMap("Rank of the right next token (1: best)", "viridis_r", "log"),
    "label_probability": HeatMap("Probability of the right next token", "viridis", "linear"),
    "entropy": HeatMap("Entropy of the lens (nats)", "magma", "linear"),
    "cosine_to_target": HeatMap("Cosine of the state and the right next token's embedding", "RdBu", "symmetric"),
    "cosine_to_output_row": HeatMap("Cosine of the state and the right next token's output row", "RdBu", "symmetric"),
    "mse_to_target": HeatMap("Squared distance to the right next token's embedding (mean over H)", "cividis", "log"),
    "relative_step": HeatMap("Relative step (change of the layer / norm before it)", "cividis", "log"),
    "state_norm": HeatMap("Norm of the state", "cividis", "log"),
}
_TOKENS_A_PANEL = 32
_LABEL_LETTERS = 14


def plot_heat_map(
    result: ProbeResult, measure: str, path: str | os.PathLike, tokens_a_panel: int = _TOKENS_A_PANEL
) -> Path:
    """
    Draw one measure: tokens from left to right, layers from bottom to top, one colour scale for all panels.

    Args:
        result ([`ProbeResult`]):
            What to draw.
        measure (`str`):
            A key of `HEAT_MAPS`.
        path (`str` or `os.PathLike`):
            PNG to write. Missing parent folders are made.
        tokens_a_panel (`int`, *optional*, defaults to `32`):
            Tokens side by side; longer texts, and further texts, go on in further panels below.

    Returns:
        `Path`: The path written.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if the measure is unknown, or `tokens_a_panel` below 1.
    """
    if measure not in HEAT_MAPS:
        raise ValueError(f"`measure` must be one of {', '.join(HEAT_MAPS)}, got {measure!r}.")
    figure = new_figure((1, 1))
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, MaxNLocator

    panels_of_tokens = split_tokens(result.rows, tokens_a_panel)
    title, colours, scale = HEAT_MAPS[measure]
    values = result.measures[measure].numpy().astype(float)  # [L + 1, N]
    # The embedding has no step
    first = 1 if np.isnan(values[0]).all() else 0
    values, layers = values[first:], result.layers[first:]

    widest = max(map(len, panels_of_tokens))
    figure.set_size_inches(2.4 + 0.36 * max(widest, 14), (2.4 + 0.24 * len(layers)) * len(panels_of_tokens) + 0.5)
    norm = _norm(values, scale)
    panels = figure.subplots(len(panels_of_tokens), 1, squeeze=False).ravel()
    for panel, tokens in zip(panels, panels_of_tokens):
        image = panel.imshow(values[:, tokens], aspect="auto", cmap=colours, norm=norm, origin="lower")
        panel.set_xlim(-0.5, widest - 0.5)  # a cell is as wide in the last panel as in the first
        panel.set_xticks(
            range(len(tokens)),
            _token_labels(result, tokens),
            rotation=90,
            fontsize=8,
            fontfamily=token_fonts(),
            parse_math=False,
        )
        shown = range(0, len(layers), math.ceil(len(layers) / 26))
        names = ["embedding" if layers[depth] < 0 else str(layers[depth]) for depth in shown]
        panel.set_yticks(shown, names, fontsize=8)
        panel.set_ylabel(_panel_name(result, tokens), fontsize=9)
        panel.spines[:].set_visible(False)
    panels[-1].set_xlabel("token read → right next token", fontsize=9)
    decades = isinstance(norm, LogNorm) and norm.vmax > 5 * norm.vmin
    ticks = LogLocator(subs=(1, 2, 5), numticks=12) if decades else MaxNLocator(6)
    # Above the first cells, where it is in sight on a narrow screen too
    place = {"location": "top", "anchor": (0, 0), "shrink": 4 / figure.get_figwidth(), "aspect": 40, "pad": 0.01}
    bar = figure.colorbar(image, ax=panels, ticks=ticks, format="%g", **place)
    bar.minorticks_off()
    bar.ax.tick_params(which="both", labelsize=8)
    bar.outline.set_visible(False)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
    return save_figure(figure, path)


def plot_trajectories(result: ProbeResult, path: str | os.PathLike, named: int = 8) -> Path:
    """
    Draw the evidence for the right next token over depth: its log-odds, a line for each token, and the mean.

    Args:
        result ([`ProbeResult`]):
            What to draw.
        path (`str` or `os.PathLike`):
            PNG to write. Missing parent folders are made.
        named (`int`, *optional*, defaults to `8`):
            Tokens drawn in colour and named, evenly spread over the ranking by drift rate; the others are grey.

    Returns:
        `Path`: The path written.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    evidence = result.measures["log_odds"].numpy()  # [L + 1, N]
    order = np.argsort(-result.drift_rate.numpy())
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(named, len(order))).round().astype(int))]
    figure = new_figure((5.1, 5.4))
    from matplotlib import colormaps

    panel = figure.subplots()
    panel.plot(result.layers, evidence, color="0.8", linewidth=0.7, zorder=1)
    for place, token in enumerate(chosen):
        shade = colormaps["viridis"](place / max(len(chosen) - 1, 1) * 0.9)
        name = f"{_token_labels(result, [token])[0]}  {result.drift_rate[token]:+.2f}"
        panel.plot(result.layers, evidence[:, token], color=shade, linewidth=1.5, label=name, zorder=2)
    panel.plot(result.layers, evidence.mean(1), color="black", linewidth=2.6, linestyle="--", label="mean of all")
    panel.axhline(0, color="0.4", linewidth=0.8)
    title = "Evidence for the right next token over depth"
    finish_panel(panel, title, "layer (-1: embedding)", "log-odds of the label, ln(p / (1 - p))")
    panel.xaxis.get_major_locator().set_params(integer=True)
    legend = figure.legend(
        loc="outside lower left",
        ncols=2,
        frameon=False,
        prop={"family": token_fonts(), "size": 8},
        title="token → right next token, drift rate (nats a layer)",
    )
    legend.get_title().set_fontsize(8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return save_figure(figure, path)


def split_tokens(rows: Sequence[int], tokens_a_panel: int) -> list[list[int]]:
    """
    Deal tokens out to panels: indices into `rows` (number of the text of each token; a text's tokens stand together),
    so that each panel holds tokens of one text, at most `tokens_a_panel`.

    Raises:
        ValueError: if `tokens_a_panel` is below 1.
    """
    if tokens_a_panel < 1:
        raise ValueError(f"`tokens_a_panel` must be at least 1, got {tokens_a_panel}.")
    panels = []
    for _, text in itertools.groupby(range(len(rows)), key=rows.__getitem__):
        text = list(text)
        # Panels of a text are about equally full
        width = math.ceil(len(text) / math.ceil(len(text) / tokens_a_panel))
        panels += [text[start : start + width] for start in range(0, len(text), width)]
    return panels


def _norm(values, scale):
    from matplotlib.colors import LogNorm, Normalize

    finite = values[np.isfinite(values)]
    if scale == "symmetric":
        bound = max(np.abs(finite).max(initial=0), 1e-6)
        return Normalize(-bound, bound)
    if scale == "log" and (finite > 0).any():
        positive = finite[finite > 0]
        return LogNorm(positive.min(), max(positive.max(), positive.min() * 1.01))
    return Normalize(finite.min(initial=0), finite.max(initial=0))


def _token_labels(result, tokens):
    text = {index: _short(string) for index, string in result.token_strings.items()}
    return [f"{text[result.input_ids[token]]} → {text[result.labels[token]]}" for token in tokens]


def _short(text):
    text = visible(text)
    return text if len(text) <= _LABEL_LETTERS else text[: _LABEL_LETTERS - 1] + "…"


def _panel_name(result, tokens):
    several = len(set(result.rows)) > 1
    return f"text {result.rows[tokens[0]] + 1}, layer" if several else "layer"
