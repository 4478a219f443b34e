"""
Speculative sampling as a plain function, and what theory says of it.

A cheap draft model proposes tokens, the target model scores all of them in one pass, and each is kept with
probability min(1, p / q). The first one that is not kept is replaced by a draw from the part of p that q misses. What
comes out is distributed exactly as the target's own samples (Leviathan et al. 2023, 2211.17192, algorithm 1 and
appendix A.1; Chen et al. 2023, 2302.01318). G drafts, V tokens.
"""

import torch


def speculative_step(
    drafts: torch.LongTensor,
    draft_probs: torch.Tensor,
    target_probs: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.LongTensor:
    """
    Keep or replace the drafted tokens.

    Args:
        drafts (`torch.LongTensor` of shape `(G,)`):
            Tokens sampled from `draft_probs`.
        draft_probs (`torch.Tensor` of shape `(G, V)`):
            q: what the draft model sampled token i from.
        target_probs (`torch.Tensor` of shape `(G + 1, V)`):
            p: the target model's distribution at the same places, and behind the last draft.
        generator (`torch.Generator`, *optional*):
            Source of the draws.

    Returns:
        `torch.LongTensor` of shape `(1,)` to `(G + 1,)`: the drafts that are kept, and one token more.

    Raises:
        `ValueError`: if the shapes do not fit.
    """
    count = len(drafts)
    if len(draft_probs) != count or len(target_probs) != count + 1:
        raise ValueError(
            f"{count} drafts need {count} rows of `draft_probs` and {count + 1} of `target_probs`, got "
            f"{len(draft_probs)} and {len(target_probs)}."
        )
    places = torch.arange(count)
    p, q = target_probs[places, drafts], draft_probs[places, drafts]
    kept = torch.rand(count, generator=generator) * q < p
    accepted = int(kept.long().cumprod(0).sum())
    if accepted < count:
        # A draft was refused, so p is smaller than q somewhere and greater elsewhere: the sum is positive
        remainder = (target_probs[accepted] - draft_probs[accepted]).clamp_min(0)
    else:
        remainder = target_probs[count]
    token = torch.multinomial(remainder, 1, generator=generator)
    return torch.cat([drafts[:accepted], token])


def acceptance_probability(draft_probs: torch.Tensor, target_probs: torch.Tensor) -> torch.Tensor:
    """
    How probably a token drafted from q is kept: the overlap of the distributions, 1 - TV(p, q).

    Args:
        draft_probs, target_probs (`torch.Tensor` of shape `(..., V)`):
            q and p.

    Returns:
        `torch.Tensor` of shape `(...)`.
    """
    return torch.minimum(draft_probs, target_probs).sum(-1)


def expected_tokens_per_pass(acceptance: float, drafts: int) -> float:
    """
    Tokens that one pass of the target model gives on average if each draft is kept with the same probability: equation
    1 of Leviathan et al., (1 - a^(G + 1)) / (1 - a).

    Args:
        acceptance (`float`):
            Probability a that a draft is kept, in [0, 1].
        drafts (`int`):
            Drafts G a pass.

    Returns:
        `float`: from 1 to G + 1.

    Raises:
        `ValueError`: if an argument is out of range.
    """
    if not 0 <= acceptance <= 1:
        raise ValueError(f"`acceptance` must be in [0, 1], got {acceptance}.")
    if drafts < 0:
        raise ValueError(f"`drafts` must not be negative, got {drafts}.")
    return sum(acceptance**count for count in range(drafts + 1))
