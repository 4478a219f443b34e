"""Which positions have a right next token: the alignment that all objectives share.

Labels come as transformers' causal LMs take them, not shifted: the state at position t belongs to the label at t+1.
"""

from typing import NamedTuple

import torch


IGNORE_INDEX = -100


class NextTokenTargets(NamedTuple):
    """
    The N valid positions of a batch and their labels, row by row.

    `index` [N] are positions in the flattened batch: `states.flatten(0, 1)[index]` are the states [N, H], and
    `index + 1` the positions of the right next tokens themselves. `labels` [N] are these tokens. Both are int64, and
    empty where no position has a target.
    """

    index: torch.Tensor
    labels: torch.Tensor


def next_token_targets(
    labels: torch.Tensor, attention_mask: torch.Tensor | None = None, position_ids: torch.Tensor | None = None
) -> NextTokenTargets:
    """
    Pairs each state with the label `[B, T]` of the next position, where there is one.

    Left out are the last position of each row, labels of -100, pairs of which either side is padding (0 or `False` in
    `attention_mask` `[B, T]`), and pairs across the border of packed sequences: where `position_ids` `[B, T]` or
    `[1, T]` do not rise from t to t+1, a new sequence begins at t+1.

    Example:

    ```python
    >>> next_token_targets(torch.tensor([[5, 6, -100, 8]]))
    NextTokenTargets(index=tensor([0, 2]), labels=tensor([6, 8]))
    ```
    """
    if labels.dim() != 2:
        raise ValueError(f"`labels` must be [B, T], got {tuple(labels.shape)}.")
    rows, length = labels.shape
    valid = labels != IGNORE_INDEX  # [B, T], indexed by the position of the label
    valid[:, :1] = False
    if attention_mask is not None:
        if attention_mask.shape != labels.shape:
            raise ValueError(
                f"`attention_mask` must be [B, T] like the labels {tuple(labels.shape)}, got "
                f"{tuple(attention_mask.shape)}. For masks over pairs of positions pass None and set the labels of "
                "padding to -100."
            )
        real = attention_mask.to(labels.device) != 0
        valid[:, 1:] &= real[:, 1:] & real[:, :-1]
    if position_ids is not None:
        if position_ids.shape not in {(rows, length), (1, length)}:
            raise ValueError(
                f"`position_ids` must be [B, T] like the labels {tuple(labels.shape)}, or [1, T], got "
                f"{tuple(position_ids.shape)}. For positions of several axes pass the one that counts tokens."
            )
        position_ids = position_ids.to(labels.device)
        valid[:, 1:] &= position_ids[:, 1:] > position_ids[:, :-1]
    target = valid.flatten().nonzero().squeeze(-1)  # [N]
    return NextTokenTargets(target - 1, labels.flatten()[target])
