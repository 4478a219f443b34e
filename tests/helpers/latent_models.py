"""Tiny models that think, batches of unlike rows for them, and the loop that says what a latent pass means."""

from functools import partial

import torch
import torch.nn.functional as F
from thinking_models import FIELDS
from tiny_models import TINY

from hf_evidenceflow import (
    ThinkingLlamaConfig,
    ThinkingLlamaForCausalLM,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
    ThinkingQwen3Config,
    ThinkingQwen3ForCausalLM,
)
from hf_evidenceflow.trainers.latent_rows import Composed, batch_rows


FAMILIES = {
    "qwen2": (ThinkingQwen2Config, ThinkingQwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (ThinkingQwen3Config, ThinkingQwen3ForCausalLM, {"head_dim": 6}),
    "llama": (ThinkingLlamaConfig, ThinkingLlamaForCausalLM, {}),
}
MODES = tuple(FIELDS)
# Prompt, number of thoughts, text: unequal in all three, and a row that does not think
ROWS = (([5, 9, 7], 3, [11, 1]), ([4, 7, 9, 13, 8, 6], 1, [21, 22, 1]), ([17, 12], 0, [1]), ([31, 3], 2, [40, 41, 1]))
FILLER = 29


def make_latent_model(mode, family="qwen2", **fields):
    """
    In fp64, with tokens that are not drawn at random. Wide weights, so that each state moves the logits, and gates
    wide open.
    """
    torch.manual_seed(7)
    config_class, model_class, own = FAMILIES[family]
    policy = "placeholder" if mode in ("coconut", "codi", "pause") else "argmax"
    defaults = {"initializer_range": 0.3, "thinking_count": 3, "thinking_token_policy": policy}
    model = model_class(config_class(**TINY | own, thinking_mode=mode, **defaults | FIELDS[mode] | fields)).double()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_exact_norm, module)
    return model


def _exact_norm(module, hidden):
    """Differs from that of transformers, which computes in fp32 whatever the model is in."""
    return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)


def latent_batch(rows=ROWS):
    """Inputs of a latent pass over rows of (prompt, number of thoughts, text)."""
    composed = [Composed(head + [FILLER] * count, count, text, -1, [], []) for head, count, text in rows]
    batch = batch_rows(composed, TINY["pad_token_id"])
    return {name: batch[name] for name in ("input_ids", "attention_mask", "latent_mask")}


def spread(tensor):
    """A number that depends on each entry in its own way: a loss whose gradient shows every mistake."""
    weights = torch.linspace(-1, 1, tensor.numel(), dtype=tensor.dtype).sin()
    return (tensor.flatten().log_softmax(0) * weights).sum()


def naive_row(model, prompt, count, text):
    """
    Logits `[t, V]` of all positions and states `[count, H]` of one row: each thought computed from the whole row
    before it, without padding and without a cache.
    """
    config, words = model.config, model.get_input_embeddings().weight
    inputs, states = words[torch.tensor(prompt)], []
    for _ in range(count):
        hidden = model.model(inputs_embeds=inputs[None]).last_hidden_state[0, -1]
        probs = model.lm_head(hidden).softmax(-1)
        mean = probs @ words
        token = FILLER if config.token_policy == "placeholder" else int(probs.argmax())
        state = {"soft": mean, "embedding": mean / probs.norm()}.get(config.thinking_mode, hidden)
        states.append(state)
        inputs = torch.cat([inputs, naive_input(model, state, words[token])[None]])
    inputs = torch.cat([inputs, words[torch.tensor(text)]])
    return model.lm_head(model.model(inputs_embeds=inputs[None]).last_hidden_state)[0], states


def naive_input(model, state, word):
    mode, base = model.config.thinking_mode, model.model
    if mode in ("pause", "none"):
        return word
    if mode in ("soft", "coconut"):
        return state
    if mode in ("projection", "codi"):
        state = base.thinking_projection(state)
        if model.config.thinking_projection_norm == "layernorm":
            state = (state - state.mean()) / (state.var(unbiased=False) + 1e-5).sqrt()
        else:
            state = state / state.norm()
    if mode == "codi":
        return state
    r, i = base.thinking_residual_gate_r(word), base.thinking_residual_gate_i(word)
    a = torch.exp(base.thinking_residual_Lambda() * r)
    return a * word + (1 - a**2 + 1e-8).sqrt() * (i * state)
