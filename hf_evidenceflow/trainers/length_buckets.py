"""Batches of rollouts cut into buckets of like length, so that short rows are not computed to the length of long ones.

Shapes: B rows, P prompt columns (padded on the left), C completion columns (padded on the right).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LengthBucket:
    """
    Rows that are computed together: their places in the batch, the columns of its `P + C` that any of them uses, and
    how many of these hold completions.
    """

    rows: torch.Tensor
    columns: slice
    completion_columns: int


def length_buckets(attention_mask: torch.Tensor, completion_columns: int, count: int) -> list[LengthBucket]:
    """
    Sort the rows of an `attention_mask` `(B, P + C)` by length and cut them into `count` buckets of equally many, or
    `B`, if that is less.

    Their number depends on the shape of the batch alone, so that processes that hold shards of one model make the same
    calls.
    """
    used = attention_mask != 0
    prompt_columns = used.shape[1] - completion_columns
    place = torch.arange(1, used.shape[1] + 1, device=used.device)
    completions = (used * (place - prompt_columns)).amax(1).clamp(min=1)
    prompts = (used * (prompt_columns + 1 - place)).amax(1).clamp(min=0)
    prompts, completions = torch.stack([prompts, completions]).cpu()
    # By completion among equal totals
    order = ((prompts + completions) * used.shape[1] + completions).argsort(stable=True)
    buckets = []
    for rows in order.split(-(-len(order) // count)):
        completion = int(completions[rows].max())
        start = prompt_columns - int(prompts[rows].max())
        columns = slice(start, prompt_columns + completion)
        buckets.append(LengthBucket(rows.to(used.device), columns, completion))
    return buckets


def join_buckets(buckets: list[LengthBucket], parts: Sequence[torch.Tensor], completion_columns: int) -> torch.Tensor:
    """
    Values `(rows, completion columns)` of each bucket as one batch `(B, C)` again, 0 where a bucket has no column.
    """
    padded = [torch.nn.functional.pad(part, (0, completion_columns - part.shape[1])) for part in parts]
    return torch.cat(padded)[torch.cat([bucket.rows for bucket in buckets]).argsort()]


def fit_columns(tensor: torch.Tensor, count: int) -> torch.Tensor:
    """Cut or pad (with 0 or `False`) the columns of `[B, C, ...]` to `count`: TRL pads completions on the right."""
    missing = count - tensor.shape[1]
    if missing <= 0:
        return tensor[:, :count]
    return torch.cat([tensor, tensor.new_zeros(len(tensor), missing, *tensor.shape[2:])], dim=1)
