"""How a layer combines its own term with those of earlier layers.

The variants differ in what the terms are (MLP outputs, attention outputs, values, states) and share these rules.
Source of depth attention: attention residuals (softmax over layer outputs with a learned query, zero at init), here
times the number of terms, so that a zero query is the plain sum.

Shapes: n terms of any one shape `(..., D)`, own term last.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F


# What identity init leaves to all earlier terms together: small in the output, not in what Adam sees of the gradient
IDENTITY_SHARE = 1e-3


def combine_terms(
    terms: Sequence[torch.Tensor], combination: str, weights: torch.Tensor | None = None, eps: float = 1e-6
) -> torch.Tensor:
    """
    Combines n terms `(..., D)`, own one last; the result has their dtype.

    Args:
        combination (`str`):
            `"sum"`, `"mean"`, `"softmax"`, `"linear"`, `"depth_attention"` or `"normed_attention"`.
        weights (`torch.Tensor` of shape `(n,)`, or `(D,)` for attention, *optional*):
            Logits of the softmax, linear weights or query. `None` stands for equal weights (`"softmax"` of one term).
        eps (`float`):
            Epsilon of the norm in attention over the terms.
    """
    if combination == "depth_attention":
        return _depth_attention(terms, weights, eps)
    if combination == "normed_attention":
        return _normed_attention(terms, weights, eps)
    if combination in ("softmax", "linear") and weights is not None:
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32))
        shares = (weights.softmax(0) if combination == "softmax" else weights).to(terms[0]).unbind()
        total = terms[0] * shares[0]
        for term, share in zip(terms[1:], shares[1:], strict=True):
            total = torch.addcmul(total, term, share)
        return total
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total if combination == "sum" else total / len(terms)


def combine_running(total: torch.Tensor, count: int, combination: str) -> torch.Tensor:
    """`"sum"` or `"mean"` from the sum of `count` terms, which needs no list of them."""
    return total if combination == "sum" else total / count


def _depth_attention(terms, query, eps):
    query = query.to(terms[0])
    logits = torch.stack([F.rms_norm(term, term.shape[-1:], eps=eps) @ query for term in terms])  # [n, ...]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    shares = len(terms) * torch.softmax(logits, dim=0, dtype=dtype).to(terms[0].dtype)
    total = terms[0] * shares[0, ..., None]
    for term, share in zip(terms[1:], shares[1:], strict=True):
        total = total + term * share[..., None]
    return total


def _normed_attention(terms, query, eps):
    """The terms' norms are values, too, in at least fp32."""
    dtype = torch.promote_types(terms[0].dtype, torch.float32)
    normed = torch.stack([F.rms_norm(term.to(dtype), term.shape[-1:], eps=eps) for term in terms])  # [n, ..., D]
    shares = (normed @ query.to(dtype) * query.shape[0] ** -0.5).softmax(0)
    return (shares.unsqueeze(-1) * normed).sum(0).to(terms[0].dtype)


def initial_weights(combination: str, count: int, identity: bool) -> torch.Tensor:
    """
    Initial weights `(n,)` for `"softmax"` or `"linear"`. With `identity` the own term alone passes: for `"softmax"` up
    to a share of 0.001 for the others, for `"linear"` exactly. Otherwise all terms weigh the same.
    """
    if combination == "linear":
        weights = torch.zeros(count) if identity else torch.full((count,), 1 / count)
        weights[-1] = 1.0 if identity else 1 / count
        return weights
    weights = torch.ones(count)
    if identity and count > 1:
        weights[-1] += math.log((count - 1) * (1 - IDENTITY_SHARE) / IDENTITY_SHARE)
    return weights


def apply_gate(own: torch.Tensor, combined: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
    """`own + gate (combined - own)` with a scalar gate; `combined` where there is none."""
    return combined if gate is None else own + gate.to(own) * (combined - own)
