"""What the hidden tokens of a gap cost both kinds of model, in nats per token: finer than right or wrong.

Both are given the tokens before each one in the gap. The T5 is given the right side too, and has to expect the gap's
end at each token, which the causal model has not.
"""

from collections.abc import Sequence

import torch
from torch import nn

from hf_evidenceflow.recipes.course.seq2seq_pretraining.gap_filling import Gap, pad_rows


@torch.no_grad()
def nats_from_both_sides(
    model, gaps: Sequence[Gap], sentinels: Sequence[int], eos: int, pad: int, batch_size: int = 64
) -> list[float]:
    """
    Mean negative log-likelihood of each gap's tokens under a span-corruption model.

    Args:
        model, gaps, sentinels, eos, pad, batch_size:
            As in [`~.gap_filling.fill_from_both_sides`].

    Returns:
        `list[float]`: nats per hidden token, one number per gap.
    """
    nats = []
    for start in range(0, len(gaps), batch_size):
        some = gaps[start : start + batch_size]
        ids, mask = pad_rows([[*gap.left, sentinels[0], *gap.right, eos] for gap in some], pad, left=False)
        labels, real = pad_rows([[sentinels[0], *gap.hidden] for gap in some], pad, left=False)
        ids, mask, labels, real = (each.to(model.device) for each in (ids, mask, labels, real))
        logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits
        nats += _means(logits[:, 1:], labels[:, 1:], real[:, 1:])
    return nats


@torch.no_grad()
def nats_from_the_left(model, gaps: Sequence[Gap], pad: int, batch_size: int = 64) -> list[float]:
    """
    Mean negative log-likelihood of each gap's tokens under a causal model, behind the left side.

    Args:
        model, gaps, pad, batch_size:
            As in [`~.gap_filling.fill_from_the_left`].

    Returns:
        `list[float]`: nats per hidden token, one number per gap.
    """
    nats = []
    for start in range(0, len(gaps), batch_size):
        some = gaps[start : start + batch_size]
        ids, mask = pad_rows([[*gap.left, *gap.hidden] for gap in some], pad, left=False)
        hidden, _ = pad_rows([[0] * len(gap.left) + [1] * len(gap.hidden) for gap in some], 0, left=False)
        ids, mask, hidden = (each.to(model.device) for each in (ids, mask, hidden))
        logits = model(input_ids=ids, attention_mask=mask).logits
        nats += _means(logits[:, :-1], ids[:, 1:], hidden[:, 1:])
    return nats


def _means(logits: torch.Tensor, labels: torch.Tensor, real: torch.Tensor) -> list[float]:
    costs = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")  # [B, T]
    return ((costs * real).sum(1) / real.sum(1)).tolist()
