"""The published computations of Ouro and Nanbeige4.2 in plain torch, from their formulas.

Ouro: `modeling_ouro.py` as in github.com/LoopedLMs/ouro_rl at 0d7e8e4. Nanbeige: `modeling_nanbeige.py` of
Nanbeige/Nanbeige4.2-3B at b82e54b, as copies of it on GitHub have it. Weights and configs have the published names.
"""

import math

import torch
import torch.nn.functional as F


def rms_norm(states, weight, eps):
    return weight * (states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + eps))


def rotate(heads, theta):
    """Heads `(B, A, T, D)` turned by their positions, halves against each other."""
    size, count = heads.shape[-1], heads.shape[2]
    rates = theta ** (-torch.arange(0, size, 2).double() / size)
    angles = (torch.arange(count).double()[:, None] * rates).repeat(1, 2).to(heads.dtype)
    first, second = heads.chunk(2, -1)
    return heads * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def layer(weights, config, index, states):
    """One decoder layer; norms behind the sub-layers where the weights have them."""

    def weight(name):
        return weights[f"model.layers.{index}.{name}.weight"]

    def norm(name, states):
        name = f"{name}.weight"
        full = f"model.layers.{index}.{name}"
        return rms_norm(states, weights[full], config["rms_norm_eps"]) if full in weights else states

    size = config["head_dim"]
    normed = norm("input_layernorm", states)
    query, key, value = (
        (normed @ weight(f"self_attn.{name}_proj").T).unflatten(-1, (-1, size)).transpose(1, 2) for name in "qkv"
    )
    query, key = rotate(query, config["rope_theta"]), rotate(key, config["rope_theta"])
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    later = torch.ones(states.shape[1], states.shape[1]).triu(1).bool()
    scores = (query @ key.transpose(2, 3) / math.sqrt(size)).masked_fill(later, -torch.inf)
    attended = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2) @ weight("self_attn.o_proj").T
    states = states + norm("input_layernorm_2", attended)
    normed = norm("post_attention_layernorm", states)
    mixed = F.silu(normed @ weight("mlp.gate_proj").T) * (normed @ weight("mlp.up_proj").T)
    return states + norm("post_attention_layernorm_2", mixed @ weight("mlp.down_proj").T)


def ouro_logits(weights, config, ids, threshold=None):
    """Logits: of the last loop, or of each token's first whose cumulative probability reaches the threshold."""
    states = F.embedding(ids, weights["model.embed_tokens.weight"])
    loops, gates = [], []
    for _ in range(config["total_ut_steps"]):
        for index in range(config["num_hidden_layers"]):
            states = layer(weights, config, index, states)
        states = rms_norm(states, weights["model.norm.weight"], config["rms_norm_eps"])
        loops.append(states)
        gates.append(states @ weights["model.early_exit_gate.weight"][0] + weights["model.early_exit_gate.bias"])
    remaining, shares = torch.ones_like(gates[0]), []
    for index, gate in enumerate(gates):
        is_last = index == len(gates) - 1
        shares.append(remaining if is_last else gate.sigmoid() * remaining)
        remaining = remaining * (1 - gate.sigmoid())
    if threshold is not None:
        reached = torch.stack(shares, -1).cumsum(-1) >= threshold
        steps = torch.where(reached.any(-1), reached.float().argmax(-1), len(loops) - 1)
        index = steps[..., None, None].expand(-1, -1, 1, states.shape[-1])
        states = torch.stack(loops, 2).gather(2, index).squeeze(2)
    return states @ weights["lm_head.weight"].T


def nanbeige_logits(weights, config, ids):
    """Logits of whole loops, with or without a norm between them, or of LoopSplit."""
    states = F.embedding(ids, weights["model.embed_tokens.weight"])
    count, loops = config["num_hidden_layers"], config["num_loops"]
    order = list(range(count))
    if config.get("enable_double_loop_split"):
        middle = config.get("loop_middle_layers") or count // 2
        first, repeats = (count - middle) // 2, (count + middle) // middle
        order = order[:first] + order[first : first + middle] * repeats + order[first + middle :]
        loops = 1
    if config.get("loop_loss_weights"):
        loops = len(config["loop_loss_weights"]) + 1
    for _ in range(loops):
        for index in order:
            states = layer(weights, config, index, states)
        if not config["skip_loop_final_norm"]:
            states = rms_norm(states, weights["model.norm.weight"], config["rms_norm_eps"])
    if config["skip_loop_final_norm"]:
        states = rms_norm(states, weights["model.norm.weight"], config["rms_norm_eps"])
    return states @ weights["lm_head.weight"].T
