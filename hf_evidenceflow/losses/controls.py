"""Controls of Loss_p: the same mean squared error with a target that says nothing about the next token.

What a layer-wise loss gains beyond `zero` and `shuffled` comes from its target; the rest is a penalty on the norm of
the states. No claim about such a loss goes without both.
"""

import torch

from .mean_squared_error import mse


def zero(states: torch.Tensor, normalizer: float | torch.Tensor | None = None) -> torch.Tensor:
    """Loss_p with the target T = 0: the mean square of the states `[N, H]`, a pure norm penalty."""
    return mse(states, torch.zeros_like(states), normalizer)


def shuffled(
    states: torch.Tensor,
    targets: torch.Tensor,
    generator: torch.Generator,
    normalizer: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Loss_p with the target of a random other valid token ([`other_tokens`]): right in distribution, wrong in content.

    Arguments as in [`mse`]. A `generator`, on any device, is required, so that the control never moves the global one
    and with it the model's dropout.
    """
    return mse(states, targets[other_tokens(len(targets), generator).to(targets.device)], normalizer)


def other_tokens(count: int, generator: torch.Generator) -> torch.Tensor:
    """
    For each of `count` tokens the index of another one, each equally likely and drawn on its own.

    Returns int64 `[N]` on the generator's device. Two positions may hold the same word: the target is another token's,
    not always another row. A token that is alone gets itself.
    """
    own = torch.arange(count, device=generator.device)
    if count < 2:
        return own
    return (own + torch.randint(1, count, (count,), generator=generator, device=generator.device)) % count
