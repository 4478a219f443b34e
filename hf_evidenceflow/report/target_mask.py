"""What a target mask releases: each supervised layer's distance to the target, block of features by block."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ..losses import next_token_targets, released_features
from ..models.decoder import decoder_parts, record_layer_states
from .figures import finish_panel, new_figure, save_figure


@torch.no_grad()
def distances_by_block(model: nn.Module, input_ids: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
    """
    Mean squared distance `[S, S]` of the states after S supervised layers (rows) to the input embedding of the right
    next token, on each of the S blocks of features (columns). With `target_mask` the diagonal is what is trained.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a causal LM.
        input_ids (`torch.Tensor` of shape `(B, T)`): text.
        layers (`Sequence[int]`): ids of the supervised layers, see [`~hf_evidenceflow.losses.layer_selection`].
    """
    parts = decoder_parts(model)
    input_ids = input_ids.to(parts.embeddings.weight.device)
    with record_layer_states(parts) as states:
        parts.model(input_ids=input_ids, use_cache=False)
    index, labels = next_token_targets(input_ids)
    target = parts.embeddings(labels)
    blocks = [released_features(len(layers), place, target.shape[-1]) for place in range(len(layers))]
    errors = [(states[layer].flatten(0, 1)[index] - target).float() ** 2 for layer in layers]
    return torch.stack([torch.stack([error[:, block].mean() for block in blocks]) for error in errors])


def plot_target_mask(distances: torch.Tensor, layers: Sequence[int], path: str | os.PathLike) -> Path:
    """Draw [`distances_by_block`] as a PNG, each column relative to its largest, and mark the released blocks."""
    from matplotlib.patches import Rectangle

    figure = new_figure((4.8, 4.0))
    panel = figure.subplots()
    image = panel.imshow((distances / distances.amax(0)).cpu().numpy(), cmap="viridis", vmin=0, origin="lower")
    for place in range(len(layers)):
        panel.add_patch(Rectangle((place - 0.5, place - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=2))
    panel.set_xticks(range(len(layers)), [str(place) for place in range(len(layers))])
    panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    finish_panel(panel, "Distance by block", "block of features; framed: released", "layer")
    figure.colorbar(image, label="squared distance to the target, of the largest")
    return save_figure(figure, path)
