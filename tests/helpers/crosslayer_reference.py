"""The cross-layer variants in plain loops, written from their table: no cache, no batching tricks, one matrix a layer.

Shapes: B rows, T positions, H hidden size, A heads, D head size.
"""

import math

import torch


def norm(x, module):
    return module.weight * x / (x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).sqrt()


def mlp(x, module):
    gate = x @ module.gate_proj.weight.T
    return (gate * torch.sigmoid(gate) * (x @ module.up_proj.weight.T)) @ module.down_proj.weight.T


def heads(x, weight, size):
    """(B, T, H) -> (B, heads, T, D)"""
    return (x @ weight.T).view(*x.shape[:2], -1, size).transpose(1, 2)


def rotate(x, theta):
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def softmax_weights(module, name):
    return getattr(module, name).softmax(0)


def reference_logits(model, input_ids, variant):
    """Logits (B, T, V) of `model`'s weights under a variant's rule."""
    config = model.config
    size, num_heads = config.head_dim, config.num_attention_heads
    groups = num_heads // config.num_key_value_heads
    future = torch.ones(input_ids.shape[1], input_ids.shape[1]).triu(1).bool()
    layers = model.model.layers
    x = model.model.embed_tokens.weight[input_ids]
    y_list, o_list, product_list, prob_list, value_list, states, updates = [], [], [], [], [], [x], [x]

    def values(layer, x):
        return heads(norm(x, layer.input_layernorm), layer.self_attn.v_proj.weight, size)

    def output(layer, probs, value):
        mixed = probs @ value.repeat_interleave(groups, 1)  # [B, A, T, D]
        return mixed.transpose(1, 2).flatten(2) @ layer.self_attn.o_proj.weight.T

    for m, layer in enumerate(layers, 1):
        attention = layer.self_attn
        normed = norm(x, layer.input_layernorm)
        query = rotate(heads(normed, attention.q_proj.weight, size), config.rope_parameters["rope_theta"])
        key = rotate(heads(normed, attention.k_proj.weight, size), config.rope_parameters["rope_theta"])
        product_list.append(query @ key.repeat_interleave(groups, 1).mT)  # [B, A, T, T]

        total = sum(product_list)
        if variant == "v4m1":
            scores = total / math.sqrt(size)
        elif variant == "v4m2":
            scores = total / math.sqrt(size * m)
        elif variant == "v4m3":
            scores = total / (m * math.sqrt(size))
        elif variant == "v4m4":
            scores = total / (size**attention.score_a * m**attention.score_b)
        elif variant == "v4m5":
            scores = sum(s / (a.exp() * math.sqrt(size)) for s, a in zip(product_list, attention.score_log_a))
        elif variant == "v4m6":
            pairs = zip(product_list, attention.score_log_a, attention.score_b)
            scores = sum(s / (a.exp() * size**b) for s, a, b in pairs)
        elif variant == "v4m7":
            scores = sum(s / a.exp() for s, a in zip(product_list, attention.score_log_a))
        else:
            scores = product_list[-1] / math.sqrt(size)
        probs = scores.masked_fill(future, -math.inf).softmax(-1)
        prob_list.append(probs)

        value = values(layer, x)
        value_list.append(value)
        if variant == "value_residual" and m > 1:
            value = attention.value_residual_weights[0] * value_list[0] + attention.value_residual_weights[1] * value
        o = output(layer, probs, value)
        o_list.append(o)

        again = [output(layers[i], prob_list[i], values(layers[i], x)) for i in range(m - 1)]
        if variant == "v2m2":
            x_mid = x + sum(o_list) / m
        elif variant == "v3m2":
            x_mid = x + o + sum(again)
        elif variant == "v3m4_1":
            x_mid = x + (o + sum(again)) / m
        elif variant == "v3m4_2" and m > 1:
            x_mid = x + sum(w * t for w, t in zip(softmax_weights(layer, "attn_residual_weights"), [*again, o]))
        else:
            x_mid = x + o

        y = mlp(norm(x_mid, layer.post_attention_layernorm), layer.mlp)
        y_list.append(y)
        again = [mlp(norm(x + t, layers[i].post_attention_layernorm), layers[i].mlp) for i, t in enumerate(again)]
        if variant == "v2m1":
            out = x_mid + sum(y_list) / m
        elif variant == "v2m3" and m > 1:
            out = x_mid + sum(w * t for w, t in zip(softmax_weights(layer, "mlp_residual_weights"), y_list))
        elif variant == "v3m1":
            out = x_mid + y + sum(again)
        elif variant == "v3m3_1":
            out = x_mid + (y + sum(again)) / m
        elif variant == "v3m3_2" and m > 1:
            out = x_mid + sum(w * t for w, t in zip(softmax_weights(layer, "mlp_residual_weights"), [*again, y]))
        else:
            out = x_mid + y

        states.append(out)
        updates.append(out - x)
        if variant == "denseformer":
            out = sum(w * t for w, t in zip(layer.state_residual_weights, states))
        elif variant == "depth_attention":
            normed = [t / (t.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() for t in updates]
            shares = torch.stack([t @ layer.depth_query for t in normed]).softmax(0)  # [m + 1, B, T]
            out = sum(len(updates) * share[..., None] * t for share, t in zip(shares, updates))
        x = out
    return norm(x, model.model.norm) @ model.lm_head.weight.T
