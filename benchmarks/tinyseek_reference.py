"""
The published computation of TinySeek, written plainly: what the benchmarks compare with, and the same weights in both.

Source: the published TinySeek (github.com/lybx-leyw/tinyseek-UT and tinyseek-ai). A loop in Python over separate
experts, each with a boolean mask and three sums that Python waits for; gates for all experts; noise on the router's
logits in evaluation too; a balance value without gradient; keys and values of the whole sequence for all heads, and no
cache. Names of modules are those of its checkpoints.

Shapes: B rows, T positions, H hidden size, N tokens, E experts.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hf_evidenceflow import TinySeekForCausalLM, convert_original_checkpoint


PUBLISHED = {
    "vocab_size": 5000,
    "n_layer": 6,
    "n_head": 8,
    "d_model": 512,
    "d_c": 128,
    "d_r": 8,
    "hidden": 32,
    "other_experts": 384,
    "shared_experts": 24,
    "keep": 8,
    "ro_theta": 10_000,
    "dropout": 0.1,
    "scale": 0.02,
    "alpha": 0.01,
    "pad_idx": 0,
}


class ReferenceExpert(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.fc1 = nn.Linear(config["d_model"], config["hidden"])
        self.fc2 = nn.Linear(config["hidden"], config["d_model"])

    def forward(self, tokens):
        return self.fc2(torch.relu(self.fc1(tokens)))


class ReferenceMoE(nn.Module):
    """Routed and shared experts, one after the other. `noise = False` leaves the noise out, for comparing outputs."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.keep, self.noise = config["keep"], True
        size, count = config["d_model"], config["other_experts"]
        self.w_g = nn.Parameter(torch.randn(size, count) * config["scale"])
        self.w_n = nn.Parameter(torch.randn(size, count) * config["scale"])
        self.experts = nn.ModuleList([ReferenceExpert(config) for _ in range(count)])
        self.shared_experts = nn.ModuleList([ReferenceExpert(config) for _ in range(config["shared_experts"])])

    def forward(self, hidden_states):
        """Output `(B, T, H)` and the balance value, a number."""
        tokens = hidden_states.flatten(0, 1)  # [N, H]
        logits = tokens @ self.w_g
        if self.noise:
            logits = logits + torch.randn_like(logits) * F.softplus(tokens @ self.w_n)
        values, chosen = logits.topk(self.keep, dim=-1)
        gates = torch.full_like(logits, -1e9).scatter(-1, chosen, values).softmax(dim=-1)  # [N, E]
        output, balance = torch.zeros_like(tokens), 0.0
        for index, expert in enumerate(self.experts):
            mask = gates[:, index] != 0
            if mask.sum() == 0:
                continue
            share, mean_gate = mask.sum().item() / len(tokens), gates[:, index].sum().item() / len(tokens)
            balance += len(self.experts) / self.keep * share * mean_gate
            output[mask] += gates[mask][:, index : index + 1] * expert(tokens[mask])
        for expert in self.shared_experts:
            output = output + expert(tokens)
        return output.view_as(hidden_states), balance - 1


class ReferenceAttention(nn.Module):
    """Latent attention with keys and values of the whole sequence."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        size, latent, rotary = config["d_model"], config["d_c"], config["d_r"]
        self.num_heads, self.head_size, self.theta = config["n_head"], size // config["n_head"], config["ro_theta"]
        self.w_dq, self.w_dkv = nn.Linear(size, latent), nn.Linear(size, latent)
        self.w_qr, self.w_kr = nn.Linear(latent, rotary), nn.Linear(size, rotary)
        self.w_uq, self.w_uk, self.w_uv = (nn.Linear(latent, size) for _ in range(3))
        self.w_o = nn.Linear(size, size)

    def forward(self, hidden_states):
        latent_query, latent = self.w_dq(hidden_states), self.w_dkv(hidden_states)
        query = self._with_rotary(self.w_uq(latent_query), self.w_qr(latent_query))  # [B, heads, T, ...]
        key = self._with_rotary(self.w_uk(latent), self.w_kr(hidden_states))
        value = self._heads(self.w_uv(latent))
        scores = query @ key.mT / query.shape[-1] ** 0.5  # [B, heads, T, T]
        length = hidden_states.shape[1]
        future = torch.ones(length, length, dtype=torch.bool, device=scores.device).triu(1)
        probabilities = scores.masked_fill(future, -1e4).softmax(dim=-1)
        return self.w_o((probabilities @ value).transpose(1, 2).flatten(2))

    def _heads(self, states):
        return states.unflatten(-1, (self.num_heads, self.head_size)).transpose(1, 2)

    def _with_rotary(self, states, rotary):
        rotary = self._rotated(rotary)[:, None].expand(-1, self.num_heads, -1, -1)
        return torch.cat([self._heads(states), rotary], dim=-1)

    def _rotated(self, states):  # [B, T, R], pairs (2i, 2i + 1)
        length, size = states.shape[1:]
        frequencies = self.theta ** (-torch.arange(0, size, 2, device=states.device).float() / size)
        angles = torch.arange(length, device=states.device)[:, None] * frequencies
        cosine, sine = angles.cos().to(states.dtype), angles.sin().to(states.dtype)
        even, odd = states[..., 0::2], states[..., 1::2]
        return torch.stack([even * cosine - odd * sine, odd * cosine + even * sine], dim=-1).flatten(-2)


class ReferenceNorm(nn.Module):
    """Layer norm that divides by the unbiased deviation."""

    def __init__(self, size: int):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, states):
        mean, variance = states.mean(-1, keepdim=True), states.var(-1, keepdim=True)
        return self.gamma * (states - mean) / torch.sqrt(variance + 1e-13) + self.beta


class ReferenceBlock(nn.Module):
    """Attention and experts, each followed by residual sum and norm."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.mla, self.moe_ffn = ReferenceAttention(config), ReferenceMoE(config)
        self.norm1, self.norm2 = ReferenceNorm(config["d_model"]), ReferenceNorm(config["d_model"])
        self.dropout = nn.Dropout(config["dropout"])

    def forward(self, states):
        states = self.norm1(states + self.dropout(self.mla(states)))
        mixed, balance = self.moe_ffn(states)
        return self.norm2(states + self.dropout(mixed)), balance


class ReferenceTinySeek(nn.Module):
    """The looped decoder with its head: ids `(B, T)` to logits `(B, T, V)` and the sum of the balance values."""

    def __init__(self, config: Mapping[str, Any]):
        super().__init__()
        self.loops, self.alpha = config["n_layer"], config["alpha"]
        self.tokenEmbedding = nn.Module()  # nested as in the checkpoints
        embedding = nn.Embedding(config["vocab_size"], config["d_model"], padding_idx=config["pad_idx"])
        self.tokenEmbedding.tokenEmbedding = embedding
        self.synonymous_layer = ReferenceBlock(config)
        self.fc = nn.Linear(config["d_model"], config["vocab_size"])

    def forward(self, ids):
        states, balance = self.tokenEmbedding.tokenEmbedding(ids), 0.0
        for _ in range(self.loops):
            states, value = self.synonymous_layer(states)
            balance += value
        return self.fc(states), balance

    def loss(self, ids):
        """Cross-entropy of the next tokens, and the balance value, which is without gradient."""
        logits, balance = self(ids)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()) + self.alpha * balance


def make_pair(config: Mapping[str, Any], seed: int = 0) -> tuple[ReferenceTinySeek, TinySeekForCausalLM]:
    """
    Reference and our model with the same random weights.

    Args:
        config (`Mapping[str, Any]`):
            As in the published JSON file.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the weights.

    Returns:
        `tuple[ReferenceTinySeek, TinySeekForCausalLM]`: in eval mode, fp32.
    """
    torch.manual_seed(seed)
    reference = ReferenceTinySeek(config).eval()
    return reference, convert_original_checkpoint(reference.state_dict(), config)


@torch.no_grad()
def check_equal(reference: ReferenceTinySeek, model: TinySeekForCausalLM, ids: torch.Tensor) -> float:
    """
    Compare the logits, without the reference's noise.

    In fp64, where no rounding decides which experts are the top ones.

    Args:
        reference ([`ReferenceTinySeek`]), model ([`TinySeekForCausalLM`]):
            The pair; stays as it is.
        ids (`torch.Tensor` of shape `(B, T)`):
            Tokens.

    Returns:
        `float`: largest difference of a logit.

    Raises:
        `RuntimeError`: if it is above 1e-5, so that a comparison of times would mean nothing.
    """
    # The angles are fp32 in both, which is most of what is left
    reference, model = copy.deepcopy(reference).double().eval(), copy.deepcopy(model).double().eval()
    reference.synonymous_layer.moe_ffn.noise = False
    difference = (reference(ids)[0] - model(ids, use_cache=False).logits).abs().max().item()
    if not difference < 1e-5:
        raise RuntimeError(f"The reference's logits differ from ours by {difference:.3g}: do not compare their times.")
    print(f"Reference and ours give the same logits (largest difference in fp64: {difference:.1e}).", flush=True)
    return difference
