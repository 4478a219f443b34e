"""What all objectives share: the shape of their inputs, their dtype and the mean over tokens.

An objective takes the flat states of the N valid positions of a micro-batch ([`next_token_targets`]), in any float
dtype, computes in at least fp32, and returns a scalar: the sum over the tokens divided by `normalizer`. That is the
count N by default (0 without any token, not NaN). With gradient accumulation it is the count of the whole batch
(`num_items_in_batch`), and then the micro-batches' values and gradients add up to the full batch's. Other shapes are a
`ValueError`.

Shapes: B rows, T positions, N valid positions of all rows, H hidden size, V vocabulary.
"""

import torch


def mean_over_tokens(per_token: torch.Tensor, normalizer: float | torch.Tensor | None = None) -> torch.Tensor:
    """The sum of one value per token `[N]` divided by `normalizer`; `None`: N."""
    return divide_by_tokens(per_token.sum(), per_token.shape[0], normalizer)


def divide_by_tokens(total: torch.Tensor, count: int, normalizer: float | torch.Tensor | None) -> torch.Tensor:
    """`total` divided by `normalizer`, or by `count` (at least 1) where that is `None`."""
    if normalizer is None:
        normalizer = max(count, 1)
    elif torch.is_tensor(normalizer):
        normalizer = normalizer.to(total.device)
    return total / normalizer


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in fp32, or in its own dtype where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def check_states_and_targets(states: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises a ValueError unless both are `[N, H]`: broadcasting would hide the mistake."""
    if states.dim() != 2 or states.shape != targets.shape:
        raise ValueError(
            "States and targets must both be [N, H], one row for each valid token, got "
            f"{tuple(states.shape)} and {tuple(targets.shape)}. Select the valid rows with `next_token_targets`."
        )
