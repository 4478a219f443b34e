"""Noisy top-k routing and its balance loss.

Source: Shazeer et al. 2017 (arXiv 1701.06538), equations 3 to 5 (routing) and Fedus et al. 2021 (arXiv 2101.03961),
equations 4 to 6 (balance), for k experts per token.

Shapes: N tokens, E routed experts, k experts per token.
"""

import torch


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
