"""
Greedy coordinate gradient (GCG): a search for a prompt of L tokens that lowers a loss.

A step asks the gradient of the loss at the one-hot vectors of the prompt which tokens promise most at each place (a
first-order guess, as in HotFlip and AutoPrompt), evaluates a sample of such single replacements exactly, and keeps the
best. The current prompt competes, so that the loss never rises.

Source: Zou et al. 2023 (2307.15043), algorithm 1; Shin et al. 2020 (AutoPrompt, 2010.15980); Ebrahimi et al. 2018
(HotFlip, 1712.06751). Deviations: a replacement is drawn once a step at most, never by the token that is there
already; and in the paper the best replacement is taken even where it is worse.

Shapes: L tokens of the prompt, V tokens of the vocabulary, K candidates a place, B replacements.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


# Forward and backward pass cost about three forward passes
GRADIENT_COST = 3


class SearchResult(NamedTuple):
    """
    The end of a search.

    Args:
        prompt (`torch.Tensor` of shape `(L,)`):
            The best prompt.
        loss (`float`):
            Its loss.
        evaluations (`int`):
            Evaluations spent; a gradient counts as 3.
        history (`list[tuple[int, float]]`):
            Evaluations spent and best loss, after the first prompt and after each step.
    """

    prompt: torch.Tensor
    loss: float
    evaluations: int
    history: list[tuple[int, float]]


def one_hot_gradient(loss_of_one_hot: Callable, prompt: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """
    Gradient of a loss at the one-hot vectors of a prompt.

    Args:
        loss_of_one_hot (`Callable`):
            Takes the one-hot vectors, of shape `(L, V)`, and returns the loss.
        prompt (`torch.Tensor` of shape `(L,)`):
            Token ids.
        vocab_size (`int`):
            V.

    Returns:
        `torch.Tensor` of shape `(L, V)`: to first order, what one more unit of each token would add to the loss.
    """
    one_hot = torch.nn.functional.one_hot(prompt, vocab_size).float().requires_grad_()
    return torch.autograd.grad(loss_of_one_hot(one_hot), one_hot)[0]


def top_candidates(gradient: torch.Tensor, prompt: torch.Tensor, allowed: torch.Tensor, k: int) -> list[torch.Tensor]:
    """
    The tokens that promise most at each place.

    Args:
        gradient (`torch.Tensor` of shape `(L, V)`):
            As from [`one_hot_gradient`].
        prompt (`torch.Tensor` of shape `(L,)`):
            The present tokens, which are no candidates for their own place.
        allowed (`torch.Tensor` of shape `(V,)`):
            True for tokens that may be used.
        k (`int`):
            Candidates a place, 1 or more; fewer where fewer are allowed.

    Returns:
        `list[torch.Tensor]`: for each place token ids, the most promising first.

    Raises:
        `ValueError`: if `k` is below 1, or no token is allowed.
    """
    if k < 1 or not allowed.any():
        raise ValueError(f"`k` must be at least 1 and some token allowed, got k={k}, {int(allowed.sum())} allowed.")
    candidates = []
    for place, token in enumerate(prompt.tolist()):
        usable = allowed.clone()
        usable[token] = False
        ids = usable.nonzero().flatten()
        candidates.append(ids[gradient[place, ids].argsort(stable=True)[:k]])
    return candidates


def sample_replacements(
    prompt: torch.Tensor,
    candidates: list[torch.Tensor],
    count: int,
    generator: torch.Generator,
    keep: Callable[[torch.Tensor], bool] | None = None,
) -> torch.Tensor:
    """
    Prompts that differ from the present one in a single token.

    Args:
        prompt (`torch.Tensor` of shape `(L,)`):
            The present prompt.
        candidates (`list[torch.Tensor]`):
            Token ids for each place.
        count (`int`):
            Most replacements to draw.
        generator (`torch.Generator`):
            Where the randomness comes from.
        keep (`Callable`, *optional*):
            Says of a prompt whether it may be used.

    Returns:
        `torch.Tensor` of shape `(B, L)`: different prompts; fewer than `count` where there are no more.
    """
    pairs = [(place, token) for place, tokens in enumerate(candidates) for token in tokens.tolist()]
    drawn = []
    for index in torch.randperm(len(pairs), generator=generator).tolist():
        if len(drawn) == count:
            break
        place, token = pairs[index]
        replaced = prompt.clone()
        replaced[place] = token
        if keep is None or keep(replaced):
            drawn.append(replaced)
    return torch.stack(drawn) if drawn else prompt.new_empty(0, len(prompt))


def gcg_step(prompt, loss, gradient, losses_of, allowed, k, count, generator, keep=None):
    """
    One step.

    Args:
        prompt (`torch.Tensor` of shape `(L,)`):
            The present prompt.
        loss (`float`):
            Its loss.
        gradient (`torch.Tensor` of shape `(L, V)`):
            The gradient there.
        losses_of (`Callable`):
            Takes prompts of shape `(B, L)` and returns their exact losses, of shape `(B,)`.
        allowed, k, count, generator, keep:
            As in [`top_candidates`] and [`sample_replacements`].

    Returns:
        `tuple[torch.Tensor, float, int]`: the better prompt or the present one, its loss, and the evaluations.
    """
    replaced = sample_replacements(prompt, top_candidates(gradient, prompt, allowed, k), count, generator, keep)
    if not len(replaced):
        return prompt, loss, 0
    losses = losses_of(replaced)
    best = int(losses.argmin())
    if losses[best] < loss:
        prompt, loss = replaced[best], float(losses[best])
    return prompt, loss, len(replaced)


def search_prompt(
    start: torch.Tensor,
    losses_of: Callable[[torch.Tensor], torch.Tensor],
    gradient_of: Callable[[torch.Tensor], torch.Tensor] | None,
    allowed: torch.Tensor,
    budget: int,
    k: int = 32,
    batch: int = 32,
    seed: int = 0,
    keep: Callable[[torch.Tensor], bool] | None = None,
) -> SearchResult:
    """
    Step until a budget of evaluations is spent.

    Args:
        start (`torch.Tensor` of shape `(L,)`):
            The first prompt.
        losses_of (`Callable`):
            Exact losses of prompts, see [`gcg_step`].
        gradient_of (`Callable`, *optional*):
            Gradient at a prompt, of shape `(L, V)`. Without it the replacements are drawn from all allowed tokens:
            the random search that a gradient has to beat.
        allowed (`torch.Tensor` of shape `(V,)`):
            True for tokens that may be used.
        budget (`int`):
            Evaluations of a prompt in all, the first prompt's among them; a gradient counts as 3.
        k (`int`, *optional*, defaults to `32`):
            Candidates a place.
        batch (`int`, *optional*, defaults to `32`):
            Replacements a step; the last step takes what is left.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the draws.
        keep (`Callable`, *optional*):
            Says of a prompt whether it may be used, such as [`~.prompt_tokens.round_trip`].

    Returns:
        [`SearchResult`]: the best prompt. The budget is spent to the last evaluation, unless a place has no
        replacement left to try.

    Raises:
        `ValueError`: if a setting or the first prompt cannot be used.
    """
    cost = 0 if gradient_of is None else GRADIENT_COST
    if budget < 1 or batch < 1:
        raise ValueError(f"`budget` and `batch` must be at least 1, got {budget} and {batch}.")
    if start.ndim != 1 or not len(start):
        raise ValueError(f"`start` must be the ids of one prompt of 1 token or more, got shape {tuple(start.shape)}.")
    if not allowed[start].all():
        refused = start[~allowed[start]].tolist()
        raise ValueError(f"`start` holds tokens that are not allowed: {refused}. Start from others, or allow them.")
    if keep is not None and not keep(start):
        raise ValueError(f"`start`, {start.tolist()}, is refused by `keep`. Start from another prompt.")

    generator = torch.Generator().manual_seed(seed)
    prompt, loss, spent = start, float(losses_of(start[None])[0]), 1
    history = [(spent, loss)]
    while budget - spent > cost:
        left = budget - spent - cost
        # What would not pay for another step goes into this one
        count = left if left - batch <= cost else batch
        if gradient_of is None:
            gradient, width = torch.zeros(len(prompt), len(allowed)), len(allowed)
        else:
            gradient, width = gradient_of(prompt), k
        prompt, loss, used = gcg_step(prompt, loss, gradient, losses_of, allowed, width, count, generator, keep)
        spent += cost + used
        history.append((spent, loss))
        if not used:
            break
    return SearchResult(prompt, loss, spent, history)
