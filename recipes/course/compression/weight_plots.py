"""Pictures of a model's weights and of its predictions: 4-bit values over the weights, temperatures over the tokens.

Shapes: N weights, T positions, V vocabulary.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hf_evidenceflow.recipes.course.compression.weight_errors import four_bit_codebooks, linear_weights
from hf_evidenceflow.report.figures import COLOURS, LINE_STYLES, finish_panel, new_figure, save_figure


TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


@torch.no_grad()
def softened(
    model: nn.Module, ids: torch.Tensor, temperatures: Sequence[float] = TEMPERATURES, ranks: int = 50
) -> dict[float, dict]:
    """
    A model's predictions at several temperatures.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Causal LM.
        ids (`torch.Tensor` of shape `(B, T)`):
            Text.
        temperatures (`Sequence[float]`, *optional*, defaults to 0.5, 1, 2 and 4):
            What the logits are divided by.
        ranks (`int`, *optional*, defaults to `50`):
            Likeliest tokens to keep.

    Returns:
        `dict[float, dict]`: by temperature the mean `entropy` in nats, and `probabilities`, the mean probability of
        the likeliest token, the next likely one, and so on.
    """
    logits, found = model(ids).logits.float().flatten(0, 1), {}
    for temperature in temperatures:
        logs = (logits / temperature).log_softmax(-1)  # [B T, V]
        sorted_ = logs.exp().sort(dim=-1, descending=True).values[:, :ranks]
        found[temperature] = {
            "entropy": -(logs.exp() * logs).sum(-1).mean().item(),
            "probabilities": sorted_.mean(0).tolist(),
        }
    return found


def plot_weights(
    model: nn.Module,
    errors: Mapping[str, Mapping[str, float]],
    temperatures: Mapping[float, Mapping],
    path: str | os.PathLike,
    block_size: int = 64,
) -> Path:
    """
    Draw the weights, the 4-bit values over them, the error of each set of values, and the softened predictions.

    Args:
        model (`nn.Module`):
            Model whose linear layers, apart from the readout, are drawn.
        errors (`Mapping[str, Mapping[str, float]]`):
            As from [`~.weight_errors.weight_errors`].
        temperatures (`Mapping[float, Mapping]`):
            As from [`softened`].
        path (`str` or `os.PathLike`):
            PNG to write.
        block_size (`int`, *optional*, defaults to `64`):
            Weights that share a scale.

    Returns:
        `Path`: The path written.
    """
    figure = new_figure((9.6, 7.2))
    panels = figure.subplots(2, 2)
    weights = linear_weights(model, block_size)
    _draw_weights(panels[0, 0], weights)
    _draw_levels(panels[0, 1], weights.reshape(-1, block_size))
    _draw_errors(panels[1, 0], errors)
    _draw_temperatures(panels[1, 1], temperatures)
    return save_figure(figure, path)


def _draw_weights(panel, weights: torch.Tensor) -> None:
    deviation, largest = weights.std().item(), weights.abs().max().item()
    counts, edges = np.histogram(weights.numpy(), bins=121, range=(-largest, largest), density=True)
    panel.stairs(counts, edges, fill=True, color=COLOURS[0], alpha=0.5, label="weights")
    middles = (edges[:-1] + edges[1:]) / 2
    normal = np.exp(-((middles / deviation) ** 2) / 2) / (deviation * np.sqrt(2 * np.pi))
    floor = counts[counts > 0].min() / 2
    shown = normal > floor
    panel.plot(middles[shown], normal[shown], color=COLOURS[1], linestyle="--", label="normal, same deviation")
    panel.set_yscale("log")
    panel.set_ylim(bottom=floor)
    _label(panel, f"Weights: largest {largest / deviation:.0f} deviations", "weight", "density")


def _draw_levels(panel, blocks: torch.Tensor) -> None:
    scaled = (blocks / blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)).flatten().numpy()
    counts, edges = np.histogram(scaled, bins=80, range=(-1, 1), density=True)
    panel.stairs(counts, edges, fill=True, color="0.85", label="weights over their block's largest")
    top = counts[1:-1].max()
    for index, (name, values) in enumerate(four_bit_codebooks().items()):
        places = [-0.06 * top * (index + 1)] * len(values)
        panel.plot(values.tolist(), places, "|", markersize=8, color=COLOURS[index], label=f"{name}'s values")
    panel.set_ylim(-0.25 * top, 1.8 * top)
    _label(panel, "4-bit values where the weights are", "share of the block's largest weight", "density")


def _draw_errors(panel, errors: Mapping[str, Mapping[str, float]]) -> None:
    for index, kind in enumerate(("normal", "trained")):
        places = np.arange(len(errors)) + 0.4 * (index - 0.5)
        values = [100 * row[kind] for row in errors.values()]
        panel.bar(places, values, 0.38, color=COLOURS[index], label=f"{kind} weights")
    panel.set_xticks(range(len(errors)), list(errors))
    panel.margins(y=0.25)
    _label(panel, "Error of 4-bit values", "", "relative error (%)")


def _draw_temperatures(panel, temperatures: Mapping[float, Mapping]) -> None:
    for index, (temperature, row) in enumerate(temperatures.items()):
        ranks = range(1, len(row["probabilities"]) + 1)
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": LINE_STYLES[index % len(LINE_STYLES)]}
        label = f"T = {temperature:g}, {row['entropy']:.2f} nats"
        panel.plot(ranks, row["probabilities"], label=label, marker="." if len(ranks) < 3 else "", **style)
    panel.set_xscale("log")
    panel.set_yscale("log")
    _label(panel, "Predictions at four temperatures", "rank of the token", "mean probability")


def _label(panel, title: str, x: str, y: str) -> None:
    finish_panel(panel, title, x, y)
    panel.legend(frameon=False, fontsize=8)
