"""Which token a model reads for which: measured by gradients, for a causal mask, a prefix mask and no mask.

The prefix mask lets the tokens of the prefix see each other both ways, and what follows see what stands before it
(Raffel et al. 2020, figure 4). A causal LM takes it as a mask of shape `(B, 1, T, T)`.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from hf_evidenceflow.report.figures import finish_panel, new_figure, save_figure


def prefix_mask(length: int, prefix: int) -> torch.Tensor:
    """
    The mask of a prefix LM.

    Args:
        length (`int`):
            Tokens T.
        prefix (`int`):
            Tokens of the prefix, from 0 (a causal mask) to T (no mask).

    Returns:
        `torch.Tensor` of shape `(T, T)`: true where token i (row) may read token j.
    """
    places = torch.arange(length)
    return (places[None] <= places[:, None]) | (places[None] < prefix)


def causal_model_states(model, mask: torch.Tensor | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """The last states of a causal LM's decoder from embeddings `(1, T, H)`, with its own mask or a given one."""
    added = None if mask is None else torch.where(mask, 0.0, torch.finfo(torch.float32).min)[None, None]
    return lambda embedded: model.base_model(inputs_embeds=embedded, attention_mask=added).last_hidden_state


def influence(states: Callable[[torch.Tensor], torch.Tensor], embedded: torch.Tensor) -> torch.Tensor:
    """
    How much each input moves each state.

    Args:
        states (`Callable`):
            Takes embeddings of shape `(1, T, H)` and gives states of shape `(1, T, H)`.
        embedded (`torch.Tensor` of shape `(1, T, H)`):
            The embeddings.

    Returns:
        `torch.Tensor` of shape `(T, T)`: the norm of the gradient of the sum of state i (row) by input j.
    """
    embedded = embedded.detach().requires_grad_()
    # A square, since the sum of a normalized state is a constant
    rows = states(embedded)[0].square().sum(-1)
    return torch.stack([torch.autograd.grad(row, embedded, retain_graph=True)[0][0].norm(dim=-1) for row in rows])


def plot_masks(measured: Mapping[str, torch.Tensor], path: str | os.PathLike) -> Path:
    """
    Draw the measured influences, each row over its largest.

    Args:
        measured (`Mapping[str, torch.Tensor]`):
            As from [`influence`], by the name of the mask.
        path (`str` or `os.PathLike`):
            PNG to write.

    Returns:
        `Path`: The path written.
    """
    figure = new_figure((3.3 * len(measured), 3.4))
    for panel, (name, values) in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured.items()):
        shown = values / values.amax(dim=1, keepdim=True)
        picture = panel.imshow(torch.where(shown > 0, shown, torch.nan).numpy(), vmin=0, vmax=1, cmap="viridis")
        finish_panel(panel, name, "token that is read", "token that reads")
    bar = figure.colorbar(picture, ax=figure.axes, shrink=0.8)
    bar.set_label("gradient over the row's largest; white: exactly 0", fontsize=8)
    return save_figure(figure, path)
