"""What tuning made: soft prompts among the words in two dimensions, and the numbers in LoRA's matrices.

Shapes: P virtual tokens, V vocabulary, H size of a word.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from peft import PeftModel, PeftType
from torch import nn

from hf_evidenceflow.recipes.course.word_vectors.vectors_plot import principal_components
from hf_evidenceflow.report.figures import COLOURS, finish_panel, new_figure, save_figure


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


def plot_adapters(
    words: torch.Tensor,
    prompts: Mapping[str, SoftPrompt],
    matrices: Mapping[str, torch.Tensor],
    path: str | os.PathLike,
) -> Path | None:
    """
    Draw what there is of both.

    Args:
        words (`torch.Tensor` of shape `(V, H)`):
            The model's embeddings of words.
        prompts (`Mapping[str, SoftPrompt]`):
            Soft prompts by the name of the method.
        matrices (`Mapping[str, torch.Tensor]`):
            As from [`lora_weights`].
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`, *optional*: The path written; `None` if there is nothing to draw.
    """
    count = bool(prompts) + bool(matrices)
    if not count:
        return None
    figure = new_figure((4.8 * count, 4.0))
    panels = list(figure.subplots(1, count, squeeze=False)[0])
    if prompts:
        _draw_prompts(panels[0], words, prompts)
    if matrices:
        _draw_matrices(panels[-1], matrices)
    for panel in panels:
        panel.legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def _draw_prompts(panel, words: torch.Tensor, prompts: Mapping[str, SoftPrompt]) -> None:
    points = [words.numpy(), *(part.numpy() for prompt in prompts.values() for part in prompt)]
    places, shares = principal_components(np.concatenate(points))
    borders = np.cumsum([0, *map(len, points)])
    panel.plot(*places[: borders[1]].T, ".", color="0.8", markersize=3, label="words")
    for index, name in enumerate(prompts):
        color = COLOURS[index % len(COLOURS)]
        start, end = (places[borders[part] : borders[part + 1]] for part in (2 * index + 1, 2 * index + 2))
        for first, last in zip(start, end):
            panel.plot(*zip(first, last), color=color, linewidth=0.7)
        panel.plot(*start.T, "o", color=color, markersize=4, markerfacecolor="white")
        panel.plot(*end.T, "o", color=color, markersize=4, label=name)
    x, y = f"first component, {shares[0]:.0%} of the variance", f"second component, {shares[1]:.0%}"
    finish_panel(panel, "Soft prompts (hollow: at first)", x, y)


def _draw_matrices(panel, matrices: Mapping[str, torch.Tensor]) -> None:
    largest = max(values.abs().max().item() for values in matrices.values())
    for index, (name, values) in enumerate(matrices.items()):
        counts, edges = np.histogram(values.numpy(), bins=80, range=(-largest, largest), density=True)
        label = f"{name}, deviation {values.std().item():.3f}"
        panel.stairs(counts, edges, fill=True, alpha=0.5, color=COLOURS[index], label=label)
    finish_panel(panel, "LoRA's matrices after tuning", "weight (B is 0 at first)", "density")
