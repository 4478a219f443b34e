"""Attention on a cached latent, with keys and values expanded or absorbed into query and output.

Source: multi-head latent attention, DeepSeek-V2 (arXiv 2405.04434, section 2.1); its absorption of the up-projections
is described below equation 45 there.

Shapes: B rows, T new positions, S positions of the cache, A heads, C latent size, N and R sizes of the unrotated and
the rotary part of a head, D value size.
"""

import torch
import torch.nn.functional as F


def rotate_pairs(states, cos, sin):
    """
    Rotary embedding `(B, 1, T, R)` of the pairs (2i, 2i + 1), whose halves come out one behind the other: dot products
    of queries and keys are those of the interleaved layout. The first half of cos and sin `(B or 1, T, R)` holds the
    angle of each pair.
    """
    half = states.shape[-1] // 2
    cos, sin = cos[:, None, :, :half], sin[:, None, :, :half]
    even, odd = states[..., 0::2], states[..., 1::2]
    return torch.cat([even * cos - odd * sin, odd * cos + even * sin], dim=-1)


def expand_latent(latent, up_projection, num_heads, nope_size):
    """
    Keys `(B, A, S, N)` and values `(B, A, S, D)` of the heads from the latent `(B, 1, S, C)`; `up_projection` maps `C`
    to `A (N + D)`, each head's key before its value.
    """
    both = up_projection(latent.squeeze(1)).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, A, S, N + D]
    return both[..., :nope_size], both[..., nope_size:]


def widened(query, key, value):
    """
    The three padded with zeros to a last size of `max(N + R, D)`, which changes neither scores nor the kept part of
    the output: the fused kernels of scaled_dot_product_attention take equal sizes only, and are several times as fast
    as its plain path.
    """
    width = max(key.shape[-1], value.shape[-1])
    return tuple(
        tensor if tensor.shape[-1] == width else F.pad(tensor, (0, width - tensor.shape[-1]))
        for tensor in (query, key, value)
    )


def absorbed_attention(query, rotary_query, latent, rotary_key, weight, value_bias, scaling, mask=None):
    """
    Attention with the up-projections of keys and values applied to the query and to the output instead.

    The bias of the keys adds the same to all scores of a query, so softmax takes it out; that of the values passes
    through, since the probabilities sum to 1. Equals attention on the expanded keys and values up to rounding.

    Args:
        query, rotary_query (`torch.Tensor` of shapes `(B, A, T, N)` and `(B, 1, T, R)`):
            Unrotated queries, and the rotary one that the heads share.
        latent, rotary_key (`torch.Tensor` of shapes `(B, 1, S, C)` and `(B, 1, S, R)`):
            What is cached.
        weight, value_bias (`torch.Tensor` of shapes `(A, N + D, C)` and `(A, D)`):
            Up-projection of each head, key rows before value rows, and its bias for the values.
        mask (`torch.Tensor` of shape `(B or 1, 1, T, S)`, *optional*):
            Boolean (`True` is seen) or additive. `None`: all is seen.

    Returns:
        `tuple`: output `(B, T, A, D)` and probabilities `(B, A, T, S)`.
    """
    size = query.shape[-1]
    latent_query = torch.matmul(query, weight[:, :size])  # [B, A, T, C]
    # One product for all heads and positions, since they share the keys
    scores = torch.matmul(latent_query.flatten(1, 2), latent.squeeze(1).mT).view(*query.shape[:3], -1)
    scores = (scores + torch.matmul(rotary_query, rotary_key.mT)) * scaling  # [B, A, T, S]
    if mask is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + mask
    probabilities = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    mixed = torch.matmul(probabilities.flatten(1, 2), latent.squeeze(1)).view_as(latent_query)  # [B, A, T, C]
    output = torch.matmul(mixed, weight[:, size:].mT) + value_bias[:, None]  # [B, A, T, D]
    return output.transpose(1, 2), probabilities


def absorbing_is_cheaper(new_positions, cached_positions, latent_size, nope_size, value_size):
    """Whether absorbing takes fewer multiplications than expanding the whole cache."""
    per_projection = latent_size * (nope_size + value_size)
    pairs = new_positions * cached_positions
    absorbed = new_positions * per_projection + pairs * 2 * latent_size
    return absorbed < cached_positions * per_projection + pairs * (nope_size + value_size)
