"""Controls of Loss_p: the same mean squared error with a target that says nothing about the next token.

What a layer-wise loss gains beyond `zero` and `shuffled` comes from its target; the rest is a penalty on the norm of
the states. No claim about such a loss goes without both.

Shapes: N valid positions, H hidden size.
"""

import torch

from .mean_squared_error import mse


def zero(states: torch.Tensor, normalizer: float | torch.Tensor | None = None) -> torch.Tensor:
    """
    Loss_p with the target T = 0: the mean square of the states, a pure norm penalty.

    Args:
        states (`torch.Tensor` of shape `(N, H)`):
            States of one layer at the valid positions, any float dtype; computed in at least fp32.
        normalizer (`float` or `torch.Tensor` of shape `()`, *optional*, defaults to `None`):
            What the sum over tokens is divided by; `None`: N.

    Returns:
        `torch.Tensor` of shape `()`, in at least fp32.

    Raises:
        ValueError: if the shape is not `(N, H)`.
    """
    return mse(states, torch.zeros_like(states), normalizer)


def shuffled(
    states: torch.Tensor,
    targets: torch.Tensor,
    generator: torch.Generator,
    normalizer: float | torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Loss_p with the target of a random other valid token ([`other_tokens`]): right in distribution, wrong in content.

    Args:
        states, targets (`torch.Tensor` of shape `(N, H)`):
            As in [`mse`]; gradients reach the targets too.
        generator (`torch.Generator`):
            Where the draw comes from, on any device. Required, so that the control never moves the global generator
            and with it the model's dropout.
        normalizer (`float` or `torch.Tensor` of shape `()`, *optional*, defaults to `None`):
            What the sum over tokens is divided by; `None`: N.

    Returns:
        `torch.Tensor` of shape `()`, in at least fp32.

    Raises:
        ValueError: if the shapes differ or are not `(N, H)`.
    """
    return mse(states, targets[other_tokens(len(targets), generator).to(targets.device)], normalizer)


def other_tokens(count: int, generator: torch.Generator) -> torch.Tensor:
    """
    For each of `count` tokens the index of another one, each equally likely and drawn on its own.

    Two positions may hold the same word: the target is another token's, not always another row. A token that is alone
    gets itself.

    Args:
        count (`int`):
            Number of tokens N.
        generator (`torch.Generator`):
            Where the draw comes from.

    Returns:
        `torch.Tensor` of shape `(N,)`, int64, on the generator's device.
    """
    own = torch.arange(count, device=generator.device)
    if count < 2:
        return own
    return (own + torch.randint(1, count, (count,), generator=generator, device=generator.device)) % count
