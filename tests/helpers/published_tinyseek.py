"""The published TinySeek as plain as it gets: a loop over experts, expanded keys and values, no cache.

Parameters have the published names, so that a state dict of it stands for a published checkpoint. The published
behaviour is kept where ours differs from it: padding is masked on queries and counts in the balance.

Shapes: B rows, T positions, H width, A heads, D size of a head, E experts, N tokens.
"""

import re

import torch
from torch import nn


# What the published tokenizer finds in a text, before it splits numbers into characters
PUBLISHED_PATTERN = r"<\|\s*im_end\s*\|>|[a-zA-Z]+|\d+(?:\.\d+)?%?|[^\w\s]|[\u4e00-\u9fff]"

PUBLISHED_CONFIG = {
    "vocab_size": 41,
    "device": "cuda",
    "n_layer": 3,
    "n_head": 3,
    "d_model": 21,
    "d_c": 10,
    "d_r": 4,
    "hidden": 9,
    "other_experts": 7,
    "shared_experts": 2,
    "keep": 3,
    "ro_theta": 100.0,
    "dropout": 0.1,
    "scale": 0.02,
    "alpha": 0.01,
    "pad_idx": 0,
}


class ReferenceNorm(nn.Module):
    """Layer norm that divides by the unbiased deviation."""

    def __init__(self, size):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(size))
        self.beta = nn.Parameter(torch.zeros(size))

    def forward(self, x):
        variance = x.var(-1, unbiased=True, keepdim=True)
        return self.gamma * (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + 1e-13) + self.beta


def rotate(x, theta):
    """`(B, T, R)`: each pair of neighbours turned by its angle."""
    size = x.shape[-1]
    turned = torch.empty_like(x)
    for pair in range(size // 2):
        angle = torch.arange(x.shape[1], dtype=torch.float64) * theta ** (-2 * pair / size)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)  # [T]
        even, odd = x[..., 2 * pair], x[..., 2 * pair + 1]  # [B, T]
        turned[..., 2 * pair] = even * cos - odd * sin
        turned[..., 2 * pair + 1] = odd * cos + even * sin
    return turned


class ReferenceAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, latent, rotary = config["d_model"], config["d_c"], config["d_r"]
        self.heads, self.theta = config["n_head"], config["ro_theta"]
        self.w_dq, self.w_uq, self.w_qr = nn.Linear(size, latent), nn.Linear(latent, size), nn.Linear(latent, rotary)
        self.w_dkv, self.w_kr = nn.Linear(size, latent), nn.Linear(size, rotary)
        self.w_uk, self.w_uv = nn.Linear(latent, size), nn.Linear(latent, size)
        self.w_o = nn.Linear(size, size)

    def forward(self, x, mask):
        latent_query, latent = self.w_dq(x), self.w_dkv(x)
        queries = self.w_uq(latent_query).chunk(self.heads, dim=-1)  # A times [B, T, D]
        keys, values = self.w_uk(latent).chunk(self.heads, dim=-1), self.w_uv(latent).chunk(self.heads, dim=-1)
        shared = rotate(self.w_qr(latent_query), self.theta) @ rotate(self.w_kr(x), self.theta).mT  # [B, T, T]
        scale = (queries[0].shape[-1] + self.w_kr.out_features) ** -0.5
        mixed = []
        for query, key, value in zip(queries, keys, values):
            scores = ((query @ key.mT + shared) * scale).masked_fill(~mask, -1e4)
            mixed.append(scores.softmax(-1) @ value)
        return self.w_o(torch.cat(mixed, dim=-1))


class ReferenceExpert(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, width), nn.Linear(width, size)

    def forward(self, x):
        return self.fc2(self.fc1(x).relu())


class ReferenceExperts(nn.Module):
    def __init__(self, config):
        super().__init__()
        size, width, count = config["d_model"], config["hidden"], config["other_experts"]
        self.keep = config["keep"]
        self.w_g, self.w_n = nn.Parameter(torch.zeros(size, count)), nn.Parameter(torch.zeros(size, count))
        self.experts = nn.ModuleList(ReferenceExpert(size, width) for _ in range(count))
        self.shared_experts = nn.ModuleList(ReferenceExpert(size, width) for _ in range(config["shared_experts"]))

    def forward(self, x, noise):
        logits = x @ self.w_g
        if noise:
            logits = logits + torch.randn_like(logits) * nn.functional.softplus(x @ self.w_n)
        best = logits.topk(self.keep, dim=-1).indices
        chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, best, True)
        gates = logits.masked_fill(~chosen, -torch.inf).softmax(-1)  # [B, T, E]
        output = sum(gates[..., e, None] * expert(x) for e, expert in enumerate(self.experts))
        output = output + sum(expert(x) for expert in self.shared_experts)
        tokens, count = x.shape[0] * x.shape[1], len(self.experts)
        used, weight = chosen.sum((0, 1)), gates.sum((0, 1))  # [E]
        return output, count * (used * weight).sum() / (self.keep * tokens**2) - 1


class ReferenceBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.mla, self.moe_ffn = ReferenceAttention(config), ReferenceExperts(config)
        self.norm1, self.norm2 = ReferenceNorm(config["d_model"]), ReferenceNorm(config["d_model"])

    def forward(self, x, mask, noise):
        x = self.norm1(x + self.mla(x, mask))
        mixed, balance = self.moe_ffn(x, noise)
        return self.norm2(x + mixed), balance


class ReferenceEmbedding(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokenEmbedding = nn.Embedding(config["vocab_size"], config["d_model"], config["pad_idx"])


class ReferenceTinySeek(nn.Module):
    """
    Args:
        config (`dict`):
            Content of the published JSON, see `PUBLISHED_CONFIG`. Dropout is left out.
    """

    def __init__(self, config):
        super().__init__()
        self.loops, self.pad = config["n_layer"], config["pad_idx"]
        self.tokenEmbedding = ReferenceEmbedding(config)
        self.synonymous_layer = ReferenceBlock(config)
        self.fc = nn.Linear(config["d_model"], config["vocab_size"])

    def forward(self, ids, noise=False):
        """Logits `(B, T, V)` and the balance, summed over the loops, of ids `(B, T)`."""
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        mask = causal & (ids != self.pad)[:, :, None]  # on queries, as published
        x, total = self.tokenEmbedding.tokenEmbedding(ids), 0.0
        for _ in range(self.loops):
            x, balance = self.synonymous_layer(x, mask, noise)
            total = total + balance
        return self.fc(x), total


def reference_model(seed=0, **changes):
    """A reference with random weights, none of them neutral, and its configuration."""
    torch.manual_seed(seed)
    config = {**PUBLISHED_CONFIG, **changes}
    model = ReferenceTinySeek(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.uniform_(0.6, 1.6)
            elif name.startswith("fc") or name.endswith(("bias", "beta")):
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 0.5)
    return model.eval(), config


def published_ids(text, vocabulary):
    """The ids that the published tokenizer gives a text."""
    tokens = []
    for token in re.findall(PUBLISHED_PATTERN, text):
        tokens.extend(token if re.search(r"[\d.%]", token) else [token])
    return [vocabulary.get(token, vocabulary["[UNK]"]) for token in tokens]
