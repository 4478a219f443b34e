"""Attention on scores that are summed over layers, and three ways to compute it.

`"running_sum"`: one tensor of raw scores is carried from layer to layer; one product a layer, but all scores of a
layer must have one scale. `"concatenate"`: sum_i s_i Q_i K_i^T = [s_0 Q_0 .. s_l Q_l] [K_0 .. K_l]^T is one call of
scaled_dot_product_attention with longer heads. `"products"`: the products are added up in one tensor, so keys are not
copied. In all three raw scores are summed and the mask is applied once: two masked scores overflow.

In training each keeps at most one T x S matrix of probabilities a layer. The second keeps none where its kernel is
fused: on CPU that takes values as long as the heads, see [`widens_values`].

Shapes: B rows, T new positions, S positions of the cache, A heads, K key-value heads, D head size, n = l + 1 layers.
"""

import math
from collections.abc import Sequence

import torch

from .accumulation import IDENTITY_SHARE


# Longest pass for which a running sum was faster than concatenated heads (8 layers): benchmarks/crosslayer_cost.py
RUNNING_SUM_POSITIONS = 2048
WIDENING_POSITIONS = 256


def score_path(
    implementation: str,
    scale_per_layer: bool,
    query_length: int,
    is_checkpointed: bool = False,
) -> str:
    """
    Which way summed scores are computed: `"running_sum"`, `"concatenate"` or `"products"`.

    Args:
        scale_per_layer (`bool`):
            Whether all scores summed in a layer have one scale.
        query_length (`int`):
            New positions T of the pass.
        is_checkpointed (`bool`, *optional*, defaults to `False`):
            Whether layers are computed again in the backward pass. What goes from layer to layer is kept then, and a
            running sum would be one matrix per layer.

    Raises:
        `ValueError`: if the attention implementation is neither `"eager"` nor `"sdpa"`.
    """
    if implementation not in ("eager", "sdpa"):
        raise ValueError(
            "Scores summed over layers need `attn_implementation` 'eager' or 'sdpa', got "
            f"{implementation!r}: load the model with one of them."
        )
    short = implementation == "eager" or query_length <= RUNNING_SUM_POSITIONS
    if scale_per_layer and short and not is_checkpointed:
        return "running_sum"
    # For one new position the copied keys would be the larger part of the work
    return "products" if implementation == "eager" or query_length == 1 else "concatenate"


def widens_values(new_positions: int, num_terms: int, device: torch.device) -> bool:
    """
    Whether values are padded with zeros to the length of concatenated heads, for the fused kernel of a CPU. It
    multiplies n times as many values but holds no T x S matrix, which pays for long passes over few terms.
    """
    return device.type == "cpu" and num_terms > 1 and new_positions >= WIDENING_POSITIONS * num_terms


def score_scale(
    log_scale: torch.Tensor | float,
    head_exponent: torch.Tensor | float,
    depth_exponent: torch.Tensor | float,
    head_dim: int,
    num_terms: int,
) -> torch.Tensor | float:
    """
    The factors 1 / (a d_k^p m^q), `(n,)` or `()`, of the scores that a layer sums.

    Log a and p are tensors `(n,)` or numbers, q is a scalar, m = n; a `float` comes back where all are numbers.
    """
    exponent = log_scale + head_exponent * math.log(head_dim) + depth_exponent * math.log(num_terms)
    return torch.exp(-exponent) if torch.is_tensor(exponent) else math.exp(-exponent)


def initial_log_scale(
    head_exponent: float, depth_exponent: float, head_dim: int, num_terms: int, identity: bool
) -> torch.Tensor:
    """
    Initial log a, `(n,)`: a d_k^p = sqrt(d_k); under identity init the own scores get Llama's scale exactly, and those
    of all earlier layers together 0.001 of it.
    """
    log_scale = torch.full((num_terms,), (0.5 - head_exponent) * math.log(head_dim))
    if identity:
        log_scale -= depth_exponent * math.log(num_terms)
        log_scale[:-1] += math.log(max(num_terms - 1, 1) / IDENTITY_SHARE)
    return log_scale


def gate_scale(scale: torch.Tensor | float, gate: torch.Tensor, head_dim: int, num_terms: int) -> torch.Tensor:
    """
    Scales `(n,)` between Llama's scores (gate 0: the own ones by 1 / sqrt(d_k), no others) and the variant's (gate 1).
    """
    plain = torch.zeros(num_terms, dtype=gate.dtype, device=gate.device)
    plain[-1] = head_dim**-0.5
    return plain + gate * (scale - plain)


def raw_scores(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """
    Q K^T `(B, A, T, S)` in at least fp32, without scale or mask, of a query `(B, A, T, D)` and a key `(B, K, S, D)`;
    for grouped heads the keys are not copied.
    """
    grouped = query.unflatten(1, (key.shape[1], -1)).flatten(2, 3)  # [B, K, A/K T, D]
    scores = torch.matmul(grouped, key.mT).view(*query.shape[:3], key.shape[2])
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def sum_of_products(
    queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor], scales: torch.Tensor | float
) -> torch.Tensor:
    """
    sum_i s_i Q_i K_i^T `(B, A, T, S)`, one product after the other.

    Queries `(B, A, T, D)` and keys `(B, K, S, D)` of n layers, own ones last; scales `(n,)`, `()` or a number.
    """
    total = None
    for query, key in zip(_scaled(queries, scales), keys, strict=True):
        scores = raw_scores(query, key)
        total = scores if total is None else total + scores
    return total


def concatenate_heads(
    queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor], scales: torch.Tensor | float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Queries `(B, A, T, n D)` and keys `(B, K, S, n D)` whose product is that of [`sum_of_products`], of the same
    arguments.
    """
    return torch.cat(_scaled(queries, scales), dim=-1), torch.cat(tuple(keys), dim=-1)


def _scaled(queries, scales):
    # The smaller factor is scaled; a 0-d fp32 tensor does not change the dtype of a bf16 one
    one_each = torch.is_tensor(scales) and scales.dim()
    return [query * scale for query, scale in zip(queries, scales.unbind() if one_each else [scales] * len(queries))]


def score_mask(attention_mask: torch.Tensor | None, query_length: int, key_length: int, device) -> torch.Tensor | None:
    """The mask that fused attention means by `None`: causal from the first position on, or all seen by one query."""
    if attention_mask is not None or query_length == 1:
        return attention_mask
    return torch.ones(query_length, key_length, dtype=torch.bool, device=device).tril()


class ScaledSoftmax(torch.autograd.Function):
    """
    softmax(scale * scores + mask) that keeps only its output for the backward pass, even for a learned scale.

    With Z the argument and P the output, dZ = P (dP - sum(P dP)); the rows of dZ sum to 0, and Z = log P + a constant
    per row, so the scale's gradient sum(dZ scores) is sum(dZ log P) / scale: the scores are not needed.

    Raw scores `(B, A, T, S)`, a positive scale `()` or `float`, a boolean (`True` is seen) or additive mask or `None`,
    and the dtype of the output.
    """

    @staticmethod
    def forward(ctx, scores, scale, mask, dtype):
        scaled = scores * scale
        if mask is not None and mask.dtype == torch.bool:
            scaled.masked_fill_(~mask, torch.finfo(scaled.dtype).min)
        elif mask is not None:
            scaled += mask
        probabilities = torch.softmax(scaled, dim=-1).to(dtype)
        ctx.is_learned = torch.is_tensor(scale)
        ctx.fixed_scale = None if ctx.is_learned else scale
        ctx.scores_dtype = scores.dtype
        ctx.save_for_backward(probabilities, *([scale] if ctx.is_learned else []))
        return probabilities

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        probabilities, *learned = ctx.saved_tensors
        scale = learned[0] if learned else ctx.fixed_scale
        dtype = ctx.scores_dtype
        probabilities = probabilities.to(dtype)
        gradient = torch.ops.aten._softmax_backward_data(gradient.to(dtype), probabilities, -1, dtype)  # dZ
        scale_gradient = None
        if ctx.needs_input_grad[1]:
            # Where P underflowed to 0, so did dZ
            logs = probabilities.clamp(min=torch.finfo(dtype).tiny).log_()
            scale_gradient = (torch.dot(gradient.flatten(), logs.flatten()) / scale).to(scale.dtype)
        return gradient.mul_(scale), scale_gradient, None, None


def attend(
    scores: torch.Tensor, value: torch.Tensor, scale: torch.Tensor | float, mask: torch.Tensor | None, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Output `(B, T, A, D)` and probabilities `(B, A, T, S)` of raw scores `(B, A, T, S)` and values `(B, K, S, D)`;
    scale and mask as in [`ScaledSoftmax`].
    """
    probabilities = ScaledSoftmax.apply(scores, scale, mask, value.dtype)
    kept = torch.dropout(probabilities, dropout, True) if dropout else probabilities
    grouped = kept.unflatten(1, (value.shape[1], -1)).flatten(2, 3)  # [B, K, A/K T, S]
    output = torch.matmul(grouped, value).view(*scores.shape[:3], value.shape[-1])
    return output.transpose(1, 2), probabilities
