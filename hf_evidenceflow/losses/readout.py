"""Objectives in the vocabulary: a layer's states read out through the shared final norm and head, in chunks of tokens.

`cross_entropy` is deep supervision with a shared head (LayerSkip, Elhoushi et al. 2024, arXiv 2404.16710;
with a head per layer: Deeply-Supervised Nets, Lee et al. 2015, arXiv 1409.5185). `lens_kl` pulls the logit lens of a
layer to the model's own final distribution: `KL(p_L || p_i)`.

Each chunk of C tokens is checkpointed, so that its [C, V] logits live for the time of the chunk and are computed again
in the backward pass. Values and gradients are the plain ones', up to the order of the sums.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from .tokens import at_least_float32, check_states_and_targets, divide_by_tokens


def cross_entropy(
    states: torch.Tensor,
    labels: torch.Tensor,
    readout: Callable[[torch.Tensor], torch.Tensor],
    normalizer: float | torch.Tensor | None = None,
    chunk_size: int = 256,
) -> torch.Tensor:
    """
    Cross-entropy of the labels under a layer's own readout, averaged over tokens.

    States are taken before the final norm, in the dtype that `readout` takes: `[C, H] -> [C, V]`, final norm, head and
    whatever the model does to its logits, which are then raised to at least fp32. It runs a second time in the
    backward pass, so it must be deterministic. About three fp32 tensors `[C, V]`, C = `chunk_size`, exist at a time.

    Example:

    ```python
    >>> cross_entropy(states, labels, lambda states: model.lm_head(model.model.norm(states)))
    ```
    """
    if states.dim() != 2 or labels.shape != states.shape[:1]:
        raise ValueError(
            "`states` must be [N, H] and `labels` [N], one for each valid token, got "
            f"{tuple(states.shape)} and {tuple(labels.shape)}. Select the valid rows with `next_token_targets`."
        )

    def chunk_sum(states, labels):
        return F.cross_entropy(at_least_float32(readout(states)), labels, reduction="sum")

    return divide_by_tokens(_sum_over_chunks(chunk_sum, states, labels, chunk_size), len(states), normalizer)


def lens_kl(
    states: torch.Tensor,
    final_states: torch.Tensor,
    readout: Callable[[torch.Tensor], torch.Tensor],
    normalizer: float | torch.Tensor | None = None,
    chunk_size: int = 256,
) -> torch.Tensor:
    """
    `KL(p_L || p_i)` from the final layer's distribution p_L to a layer's own p_i, averaged over tokens, in nats.

    Both states are taken before the final norm. p_L is detached: no gradient asks the last layer to come nearer to the
    others. The parameters of `readout` get gradients through p_i only. The rest is as in [`cross_entropy`].
    """
    check_states_and_targets(states, final_states)

    def chunk_sum(states, final_states):
        with torch.no_grad():
            target = F.log_softmax(at_least_float32(readout(final_states)), dim=-1)  # [C, V]
        log_probs = F.log_softmax(at_least_float32(readout(states)), dim=-1)  # [C, V]
        return F.kl_div(log_probs, target, reduction="sum", log_target=True)

    total = _sum_over_chunks(chunk_sum, states, final_states.detach(), chunk_size)
    return divide_by_tokens(total, len(states), normalizer)


def _sum_over_chunks(chunk_sum, states, others, chunk_size):
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1 token, got {chunk_size}.")
    # Nothing random runs inside, and saving the generator's state would wait for the device in every chunk
    sums = [
        checkpoint(chunk_sum, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in zip(states.split(chunk_size), others.split(chunk_size))
    ]
    return torch.stack(sums).sum()
