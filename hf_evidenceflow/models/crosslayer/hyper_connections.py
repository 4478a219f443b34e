"""Hyper-connections: n residual streams, from which a sublayer reads a mix, and which it writes to in other shares.

With streams S `[n, H]`, a sublayer F gives S' = outputs F(inputs S) + mix^T S. Static and dynamic hyper-connections
(arXiv 2409.19606, equations 1 to 13): free inputs, mix and outputs, to which the dynamic ones add scale *
tanh(LayerNorm(S) W) of each token. Manifold-constrained ones (mHC, arXiv 2512.24880, as in DeepSeek-V4): inputs and
outputs are sigmoids and the mix is doubly stochastic, all of each token.

Deviations: the last states are the mean of the streams, not their sum, which the norm behind them makes the same; the
LayerNorm has no weights of its own, which W can hold. The initial values of mHC are ours: W is 0, so that a fresh
model computes what Llama does, and sublayers read from one stream mostly, each from another, so that streams part.

Shapes: B rows, T positions, n streams, H hidden size.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from .configuration_crosslayer import CrossLayerLlamaConfig
from .term_combination import float32_parameter


STREAMS_EPS = 1e-6
SINKHORN_ITERATIONS = 20
_SCALE = 0.01  # initial scale of what depends on the token, in both papers
_OWN_SHARE = 0.7  # of the stream that a sublayer mostly reads from, in mHC
_OWN_LOGIT = 4.0  # of a stream in itself, in mHC


def doubly_stochastic(
    logits: torch.Tensor, iterations: int = SINKHORN_ITERATIONS, eps: float = STREAMS_EPS
) -> torch.Tensor:
    """Matrices `(..., n, n)` whose rows and columns sum to 1, by Sinkhorn and Knopp; columns are divided last."""
    matrix = logits.softmax(-1) + eps
    for step in range(iterations):
        if step:
            matrix = matrix / (matrix.sum(-1, keepdim=True) + eps)
        matrix = matrix / (matrix.sum(-2, keepdim=True) + eps)
    return matrix


def read_streams(streams: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """The mix `(B, T, H)` of streams `(B, T, n, H)` by shares `(n,)` or `(B, T, n)`."""
    return (inputs.unsqueeze(-1) * streams).sum(-2).to(streams.dtype)


def write_streams(
    streams: torch.Tensor, mix: torch.Tensor, outputs: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """
    Streams `(B, T, n, H)` behind a sublayer.

    Args:
        mix (`torch.Tensor` of shape `(n, n)` or `(B, T, n, n)`): from the stream of the row to that of the column.
        outputs (`torch.Tensor` of shape `(n,)` or `(B, T, n)`): shares of the output in the streams.
        output (`torch.Tensor` of shape `(B, T, H)`): of the sublayer.
    """
    mix, outputs = mix.to(streams.dtype), outputs.to(streams.dtype)
    return outputs.unsqueeze(-1) * output.unsqueeze(-2) + torch.matmul(mix.mT, streams)


class StreamConnection(nn.Module):
    """What both kinds share; `weights(streams)` gives inputs, mix and outputs."""

    def read(self, memory: tuple) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Input `(B, T, H)` of the sublayer, and what [`write`] needs."""
        inputs, *rest = self.weights(memory[0])
        return read_streams(memory[0], inputs), tuple(rest)

    def write(self, memory: tuple, weights: tuple[torch.Tensor, ...], output: torch.Tensor) -> tuple:
        """The memory behind the sublayer."""
        return (write_streams(memory[0], *weights, output),)

    def plain(self, memory: tuple) -> torch.Tensor:
        """States `(B, T, H)` that are Llama's in a fresh model."""
        return memory[0].mean(-2)


class HyperConnection(StreamConnection):
    """Static or dynamic hyper-connection of the sublayer number `place`, from 0."""

    def __init__(self, config: CrossLayerLlamaConfig, place: int):
        super().__init__()
        count = config.num_residual_streams
        self.place, self.is_dynamic = place % count, config.cross_layer_combination == "dynamic"
        self.hyper_input = float32_parameter(count)
        self.hyper_mix = float32_parameter(count, count)
        self.hyper_output = float32_parameter(count)
        if self.is_dynamic:
            self.hyper_weight = float32_parameter(count + 2, config.hidden_size)
            self.hyper_scale = float32_parameter(2)

    def init_extra_parameters(self, config: CrossLayerLlamaConfig) -> None:
        """Equation 14: each sublayer reads one stream, and adds its output to all of them."""
        count = len(self.hyper_input)
        init.copy_(self.hyper_input, torch.eye(count)[self.place])
        init.copy_(self.hyper_mix, torch.eye(count))
        init.ones_(self.hyper_output)
        if self.is_dynamic:
            init.zeros_(self.hyper_weight)
            init.constant_(self.hyper_scale, _SCALE)

    def weights(self, streams: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs `(n,)`, mix `(n, n)` and outputs `(n,)`; dynamic ones with `(B, T)` in front."""
        if not self.is_dynamic:
            return self.hyper_input, self.hyper_mix, self.hyper_output
        normed = F.layer_norm(streams.to(self.hyper_weight.dtype), streams.shape[-1:])
        shifts = F.linear(normed, self.hyper_weight).tanh()  # [B, T, n, n + 2]
        of_output, of_streams = self.hyper_scale.unbind()
        return (
            self.hyper_input + of_streams * shifts[..., 0],
            self.hyper_mix + of_streams * shifts[..., 2:],
            self.hyper_output + of_output * shifts[..., 1],
        )


class ConstrainedHyperConnection(StreamConnection):
    """Manifold-constrained hyper-connection of the sublayer number `place`, from 0; DeepSeek-V4's, and its weights."""

    def __init__(self, config: CrossLayerLlamaConfig, place: int):
        super().__init__()
        self.count, self.eps = config.num_residual_streams, config.rms_norm_eps
        self.place = place % self.count
        size = (2 + self.count) * self.count
        self.hyper_weight = float32_parameter(size, self.count * config.hidden_size)
        self.hyper_base = float32_parameter(size)
        self.hyper_scale = float32_parameter(3)

    def init_extra_parameters(self, config: CrossLayerLlamaConfig) -> None:
        """Inputs that sum to 1, outputs of 1, and a mix near the identity."""
        inputs = torch.full((self.count,), (1 - _OWN_SHARE) / (self.count - 1))
        inputs[self.place] = _OWN_SHARE
        base = [(inputs - STREAMS_EPS).logit(), torch.zeros(self.count), _OWN_LOGIT * torch.eye(self.count).flatten()]
        init.copy_(self.hyper_base, torch.cat(base))
        init.zeros_(self.hyper_weight)
        init.constant_(self.hyper_scale, _SCALE)

    def weights(self, streams: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs `(B, T, n)`, mix `(B, T, n, n)` and outputs `(B, T, n)`."""
        sizes = [self.count, self.count, self.count**2]
        parts = zip(
            _projected(streams, self.hyper_weight, self.eps).split(sizes, -1),
            self.hyper_scale.unbind(),
            self.hyper_base.split(sizes),
        )
        inputs, outputs, mix = (part * scale + base for part, scale, base in parts)
        mix = doubly_stochastic(mix.unflatten(-1, (self.count, self.count)))
        return inputs.sigmoid() + STREAMS_EPS, mix, 2 * outputs.sigmoid()


class StreamReadout(nn.Module):
    """The last states of a model with constrained connections: shares of the streams, of each token."""

    def __init__(self, config: CrossLayerLlamaConfig):
        super().__init__()
        count, self.eps = config.num_residual_streams, config.rms_norm_eps
        self.hyper_weight = float32_parameter(count, count * config.hidden_size)
        self.hyper_base = float32_parameter(count)
        self.hyper_scale = float32_parameter(1)

    def init_extra_parameters(self, config: CrossLayerLlamaConfig) -> None:
        """The mean of the streams."""
        share = 1 / config.num_residual_streams - STREAMS_EPS
        init.constant_(self.hyper_base, math.log(share / (1 - share)))
        init.zeros_(self.hyper_weight)
        init.constant_(self.hyper_scale, _SCALE)

    def read(self, memory: tuple) -> tuple[torch.Tensor, tuple]:
        """States `(B, T, H)`; nothing is written behind them."""
        shares = _projected(memory[0], self.hyper_weight, self.eps) * self.hyper_scale + self.hyper_base
        return read_streams(memory[0], shares.sigmoid() + STREAMS_EPS), ()


def _projected(streams, weight, eps):
    flat = streams.flatten(-2).to(weight.dtype)
    return F.linear(F.rms_norm(flat, flat.shape[-1:], eps=eps), weight)
