"""What tuning made: soft prompts among the words in two dimensions, and the numbers in LoRA's matrices.

Shapes: P virtual tokens, V vocabulary, H size of a word.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel, PeftType
from torch import nn

from hf_evidenceflow.recipes.course.word_vectors.vectors_plot import principal_components
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure


MOST_WORDS = 2000  # drawn of a large vocabulary


class SoftPrompt(NamedTuple):
    """
    A soft prompt before and after tuning.

    Args:
        start, end (`torch.Tensor` of shape `(P, H)`):
            Its virtual tokens.
    """

    start: torch.Tensor
    end: torch.Tensor


def soft_prompt(model: nn.Module) -> torch.Tensor | None:
    """The virtual tokens of a model with a soft prompt or P-tuning, of shape `(P, H)`; `None` for other models."""
    if not isinstance(model, PeftModel) or model.active_peft_config.peft_type not in (
        PeftType.PROMPT_TUNING,
        PeftType.P_TUNING,
    ):
        return None
    return model.get_prompt_embedding_to_save(model.active_adapter).detach().float().cpu().clone()


def lora_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """All numbers of LoRA's matrices A and B; empty for other models."""
    found: dict[str, list] = {"A": [], "B": []}
    for name, parameter in model.named_parameters():
        for matrix in found:
            if f"lora_{matrix}." in name:
                found[matrix].append(parameter.detach().float().cpu().flatten())
    return {matrix: torch.cat(parts) for matrix, parts in found.items() if parts}


def adapter_rows(
    words: torch.Tensor, prompts: Mapping[str, SoftPrompt], matrices: Mapping[str, torch.Tensor]
) -> dict[str, dict]:
    """
    What the picture is drawn from: places in two dimensions, and histograms.

    Args:
        words (`torch.Tensor` of shape `(V, H)`):
            The model's embeddings of words.
        prompts (`Mapping[str, SoftPrompt]`):
            Soft prompts by the name of the method.
        matrices (`Mapping[str, torch.Tensor]`):
            As from [`lora_weights`].

    Returns:
        `dict[str, dict]`: `plane` and `histograms`, empty where there is nothing to draw.
    """
    plane, histograms = {}, {}
    if prompts:
        points = [words.numpy(), *(part.numpy() for prompt in prompts.values() for part in prompt)]
        places, shares = principal_components(np.concatenate(points))
        of_words, *parts = np.split(places, np.cumsum(list(map(len, points)))[:-1])
        ends = {
            name: {"start": start.tolist(), "end": end.tolist()}
            for name, start, end in zip(prompts, parts[::2], parts[1::2])
        }
        drawn = of_words[:: -(-len(of_words) // MOST_WORDS)]
        plane = {"shares": shares.tolist(), "words": drawn.tolist(), "prompts": ends}
    if matrices:
        largest = max(values.abs().max().item() for values in matrices.values())
        for name, values in matrices.items():
            counts, edges = np.histogram(values.numpy(), bins=80, range=(-largest, largest), density=True)
            deviation = values.std().item()
            histograms[name] = {"counts": counts.tolist(), "edges": edges.tolist(), "deviation": deviation}
    return {"plane": plane, "histograms": histograms}


def plot_adapters(rows: Mapping[str, Mapping], path: str | os.PathLike) -> Path | None:
    """
    Draw what there is of both.

    Args:
        rows (`Mapping[str, Mapping]`):
            As from [`adapter_rows`].
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`, *optional*: The path written; `None` if there is nothing to draw.
    """
    count = bool(rows["plane"]) + bool(rows["histograms"])
    if not count:
        return None
    figure = new_figure((4.8 * count, 4.0))
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    if rows["plane"]:
        _draw_prompts(panels[0], rows["plane"])
    if rows["histograms"]:
        _draw_matrices(panels[-1], rows["histograms"])
    for panel in panels:
        panel.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def _draw_prompts(panel, plane: Mapping[str, Any]) -> None:
    panel.plot(*zip(*plane["words"]), ".", color="0.8", markersize=3, label="words")
    for index, (name, ends) in enumerate(plane["prompts"].items()):
        color = COLOURS[index % len(COLOURS)]
        for first, last in zip(ends["start"], ends["end"]):
            panel.plot(*zip(first, last), color=color, linewidth=0.7)
        panel.plot(*zip(*ends["start"]), "o", color=color, markersize=4, markerfacecolor="white")
        panel.plot(*zip(*ends["end"]), "o", color=color, markersize=4, label=name)
    first, second = plane["shares"]
    x, y = f"first component, {first:.0%} of the variance", f"second component, {second:.0%}"
    finish_panel(panel, "Soft prompts (hollow: at first)", x, y)


def _draw_matrices(panel, histograms: Mapping[str, Mapping[str, Any]]) -> None:
    for index, (name, bars) in enumerate(histograms.items()):
        label = f"{name}, deviation {bars['deviation']:.3f}"
        panel.stairs(bars["counts"], bars["edges"], fill=True, alpha=0.5, color=COLOURS[index], label=label)
    finish_panel(panel, "LoRA's matrices after tuning", "weight (B is 0 at first)", "density")
