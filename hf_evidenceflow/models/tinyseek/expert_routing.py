"""Noisy top-k routing and its balance loss, and the sigmoid routing of sigma-MoE with its entropies.

Source: Shazeer et al. 2017 (arXiv 1701.06538), equations 3 to 5 (routing) and Fedus et al. 2021 (arXiv 2101.03961),
equations 4 to 6 (balance), for k experts per token; Csordás et al. 2024 (MoEUT, arXiv 2405.16039) for sigma-MoE.

Shapes: N tokens, E routed experts, k experts per token.
"""

import math

import torch


ATTENTION_SHARE = 0.1  # of attention's entropies in the balance, as published: weights of .01 and .001


def top_k_gates(logits, k):
    """Gates `(N, k)` that sum to 1, and the indices `(N, k)` of their experts, from logits `(N, E)`."""
    values, indices = logits.topk(k, dim=-1)
    return values.softmax(dim=-1), indices


def balance_loss(gates, indices, num_experts, token_mask=None):
    """
    How uneven the experts are used, `()` in at least fp32: `E/k * sum_e f_e P_e - 1`, with f_e the share of tokens
    that use expert e (counted, without gradient) and P_e its mean gate. 0 is even, E/k - 1 is all tokens on the same
    experts.

    Gates and indices are those of [`top_k_gates`]; `token_mask` `(N,)` is nonzero at tokens that count (all, if not
    given). Without any the loss is 0.
    """
    gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
    counted = gates.new_ones(len(gates)) if token_mask is None else (token_mask != 0).to(gates)  # [N]
    tokens = counted.sum().clamp(min=1)
    with torch.no_grad():
        flat = indices.flatten()
        used = gates.new_zeros(num_experts).scatter_add_(0, flat, counted.repeat_interleave(indices.shape[1]))
        share = used / tokens  # [E]
    # sum_e f_e P_e, token by token
    product = (gates * share[indices]).sum(-1).mul(counted).sum() / tokens
    return num_experts / indices.shape[1] * product - (counted.sum() > 0).to(product)


def sigmoid_gates(logits, k):
    """As [`top_k_gates`], with the sigmoids of the scores, which do not sum to 1 and do not compete."""
    values, indices = logits.topk(k, dim=-1)
    return values.sigmoid(), indices


def mean_choice(logits, token_mask):
    """
    Mean probability of each expert over the positions of a row that `token_mask` `(B, T)` counts: `(B, ..., E)` from
    logits `(B, T, ..., E)`, in at least fp32. Without any it is 0.
    """
    shares = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1)
    counted = (token_mask != 0).to(shares)
    counted = counted / counted.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("bt,bt...->b...", counted, shares)


def entropy_balance(calls, num_blocks, num_experts, attention_experts):
    """
    How uneven rows use the experts, `()`: log E minus the entropy of the mean choice over a row and all loops, its
    mean over the rows and sum over the blocks, and `ATTENTION_SHARE` times those of attention, mean over the heads.
    0 is even. Differs from the published loss, the negative entropies, by a constant.

    Args:
        calls (`list[torch.Tensor]`):
            Of each call of a block in their order, `(B, E + 2 A e)`: the means of [`mean_choice`] for the E experts,
            and for values and outputs the e of A heads.
        num_blocks, num_experts, attention_experts (`int`):
            Blocks that are called in turn, E and e (or 0).
    """
    total = 0
    for block in range(num_blocks):
        pooled = torch.stack(calls[block::num_blocks]).mean(0)
        total = total + _unevenness(pooled[:, :num_experts])
        if attention_experts:
            heads = pooled[:, num_experts:].unflatten(-1, (2, -1, attention_experts))
            total = total + ATTENTION_SHARE * 2 * _unevenness(heads)  # of values and outputs, summed
    return total


def _unevenness(shares):
    logs = shares.clamp(min=torch.finfo(shares.dtype).tiny).log()  # finite gradient at 0
    return (shares * (logs + math.log(shares.shape[-1]))).sum(-1).mean()
