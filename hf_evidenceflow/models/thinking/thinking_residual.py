"""The thinking residual: how a latent state is mixed into the embedding of a completion token.

Source: Yue et al. 2025, Hybrid Latent Reasoning via Reinforcement Learning (arXiv 2505.18454), section 3. Deviation:
next to the paper's probability-weighted embedding, the state may be a learned projection of the last hidden state.

Shapes: B rows, C completion tokens, H hidden size, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .thinking_methods import ThinkingMethod


THINKING_MODULES = (
    "thinking_residual_gate_r",
    "thinking_residual_gate_i",
    "thinking_residual_Lambda",
    "thinking_projection",
    "thinking_head",  # in models that were made in a mode with a learned schedule
)


def thinking_modules_in_use(method: ThinkingMethod) -> tuple[str, ...]:
    """Names of the thinking modules that a method computes with, and that therefore can be trained in it."""
    gates = THINKING_MODULES[:3] if method.mixer == "gated" else ()
    projection = THINKING_MODULES[3:4] if method.source == "projection" else ()
    return (*gates, *projection, *(THINKING_MODULES[4:] if method.schedule == "head" else ()))


def mix_thinking_state(
    embeds: torch.Tensor, state: torch.Tensor, r: torch.Tensor, i: torch.Tensor, log_a_max: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Mix a thinking state into token embeddings: `a * e + sqrt(1 - a^2 + 1e-8) * (i * s)` with `a = exp(log_a_max * r)`.

    Args:
        embeds, state (`torch.Tensor` of shape `(..., H)`): token embeddings `e` and thinking states `s`, fp32.
        r, i (`torch.Tensor` of shape `(..., H)`): recurrence and input gates in (0, 1).
        log_a_max (`torch.Tensor` of shape `(H,)`): `-c * softplus(-Lambda)`, negative.

    Returns:
        `tuple`: the mixed embeddings and `a`, both of shape `(..., H)`.
    """
    a = torch.exp(log_a_max * r)
    return a * embeds + torch.sqrt(1 - a * a + 1e-8) * (i * state), a


def embedding_state(probs: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """
    The paper's thinking state `sum_v p_v E[v] / sqrt(sum_v p_v^2)`; arguments as in [`soft_state`].
    """
    return soft_state(probs, embedding) / probs.norm(dim=-1, keepdim=True).to(embedding.dtype)


def soft_state(probs: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """
    The input of soft thinking, `sum_v p_v E[v]`; a distribution with all its mass on one token gives its embedding.

    Source: Zhang et al. 2025, Soft Thinking (arXiv 2505.15778), equation 3.

    Args:
        probs (`torch.Tensor` of shape `(B, V)`): the distribution a token was drawn from, fp32.
        embedding (`torch.Tensor` of shape `(V, H)`): input embedding matrix.

    Returns:
        `torch.Tensor` of shape `(B, H)`, in the dtype of `embedding`.
    """
    # An embedding matrix may be longer than the head (padded vocabulary). A slice's gradient is a matrix of zeros more
    if embedding.shape[0] > probs.shape[-1]:
        embedding = embedding[: probs.shape[-1]]
    return probs.to(embedding.dtype) @ embedding


class Float32Module(nn.Module):
    """
    Parameters that stay fp32 under `.to(bf16)` and `.half()`: with bf16's 8 bits, steps at a rate of 1e-3 are rounded
    away. Where a wrapper hands out half-precision copies of them all the same, the computation stays in the dtype of
    its input.
    """

    def _apply(self, fn, recurse=True):
        def moved(tensor):
            out = fn(tensor)
            if out.dtype in (torch.bfloat16, torch.float16):
                return tensor.to(device=out.device, dtype=torch.float32)
            return out

        return super()._apply(moved, recurse)


class _Float32Linear(Float32Module):
    # No `nn.Linear`: PEFT's "all-linear" and quantizers take those, and an adapter would be added behind the sigmoid
    def __init__(self, hidden_size: int, bias: bool, outputs: int | None = None):
        super().__init__()
        outputs = outputs or hidden_size
        self.weight = nn.Parameter(torch.empty(outputs, hidden_size, dtype=torch.float32))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=torch.float32)) if bias else None

    def forward(self, inputs):
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return F.linear(inputs, self.weight.to(inputs.dtype), bias)


class ThinkingGate(_Float32Linear):
    """`sigmoid(W e + b)`, [..., H] -> [..., H], fp32."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, bias=True)

    def forward(self, embeds):
        return torch.sigmoid(super().forward(embeds))

    def init_weights(self, config):
        init.normal_(self.weight, mean=0.0, std=getattr(config, "initializer_range", 0.02))
        init.zeros_(self.bias)


class ThinkingLambda(Float32Module):
    """
    The decay `-c * softplus(-Lambda)`, [H], fp32: the logarithm of the largest weight that keeps the token embedding.
    """

    def __init__(self, hidden_size: int, c: float):
        super().__init__()
        self.c = c
        self.Lambda = nn.Parameter(torch.empty(hidden_size, dtype=torch.float32))

    def forward(self):
        return -self.c * F.softplus(-self.Lambda.to(torch.promote_types(self.Lambda.dtype, torch.float32)))

    def init_weights(self, config):
        # a at an open gate is uniform in [r_min, r_max]
        init.uniform_(self.Lambda, config.thinking_residual_r_min, config.thinking_residual_r_max)
        init.copy_(self.Lambda, -torch.log(torch.expm1(-torch.log(self.Lambda) / self.c)))


class ThinkingProjection(_Float32Linear):
    """
    Last hidden state -> thinking state before normalization, [..., H] -> [..., H], fp32, one or two layers, without
    bias.
    """

    def __init__(self, hidden_size: int, num_layers: int = 1):
        super().__init__(hidden_size, bias=False)
        self.hidden = _Float32Linear(hidden_size, bias=False) if num_layers == 2 else None

    def forward(self, hidden_states):
        if self.hidden is not None:
            hidden_states = F.silu(self.hidden(hidden_states))
        return super().forward(hidden_states)

    def init_weights(self, config):
        # Under a norm the scale has no effect on the output, but the gradient grows as 1/std (docstring of the config)
        std = config.thinking_projection_init_std
        std = 1 / math.sqrt(self.weight.shape[1]) if std is None else std
        for weight in (self.weight,) if self.hidden is None else (self.weight, self.hidden.weight):
            init.normal_(weight, mean=0.0, std=std)


class ThinkingHead(_Float32Linear):
    """Last hidden state -> log-odds of thinking, [..., H] -> [...], fp32; 0 at the start."""

    def __init__(self, hidden_size: int):
        super().__init__(hidden_size, bias=True, outputs=1)

    def forward(self, hidden_states):
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        return super().forward(hidden_states.to(dtype)).squeeze(-1)

    def init_weights(self, config):
        init.zeros_(self.weight)
        init.zeros_(self.bias)


def normalize_state(projected: torch.Tensor, embeds: torch.Tensor, norm: str) -> torch.Tensor:
    """
    Bring projected states to the scale of embeddings.

    Args:
        projected, embeds (`torch.Tensor` of shape `(..., H)`): projected hidden states and the token embeddings.
        norm (`str`):
            `"l2"`: unit length. `"layernorm"`: zero mean and unit variance over H, no parameters. `"embedding_rms"`:
            the root mean square of the token embedding at the same position.
    """
    if norm == "l2":
        return F.normalize(projected, dim=-1)
    if norm == "layernorm":
        return F.layer_norm(projected, projected.shape[-1:])
    rms = embeds.detach().square().mean(-1, keepdim=True).sqrt()
    return F.rms_norm(projected, projected.shape[-1:]) * rms
