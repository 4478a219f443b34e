"""A tiny thinking model without a tokenizer, and the decoding loop that says what its ways of thinking mean."""

import torch
from tiny_models import TINY

from hf_evidenceflow import (
    ThinkingLlamaConfig,
    ThinkingLlamaForCausalLM,
    ThinkingQwen2Config,
    ThinkingQwen2ForCausalLM,
)


PROMPTS = torch.tensor([[0, 0, 5, 9], [4, 7, 9, 13], [0, 8, 11, 6]])
MASK = (PROMPTS > 0).long()
PLACEHOLDER = 29
# What each mode needs besides a count; gates wide open, so that a state that is fused or not changes the next tokens
FIELDS = {
    "coconut": {"thinking_placeholder_id": PLACEHOLDER},
    "codi": {"thinking_placeholder_id": PLACEHOLDER, "thinking_projection_norm": "layernorm"},
    "pause": {"thinking_placeholder_id": PLACEHOLDER},
    "soft": {},
    "projection": {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1},
    "embedding": {"thinking_residual_r_min": 0.05, "thinking_residual_r_max": 0.1},
    "none": {},
}


_FAMILIES = {
    "qwen2": (ThinkingQwen2Config, ThinkingQwen2ForCausalLM),
    "llama": (ThinkingLlamaConfig, ThinkingLlamaForCausalLM),
}


def make_thinker(mode, count=3, family="qwen2", **fields):
    """fp64, or rounding could decide between two tokens."""
    torch.manual_seed(7)
    fields = {"initializer_range": 0.4, "thinking_count": count, **FIELDS.get(mode, {}), **fields}
    config_class, model_class = _FAMILIES[family]
    model = model_class(config_class(**TINY, thinking_mode=mode, **fields)).eval().double()
    model.generation_config.eos_token_id = None
    return model


def think(model, new_tokens=8, **kwargs):
    torch.manual_seed(0)
    kwargs = {"do_sample": False, "return_dict_in_generate": True, **kwargs}
    return model.generate(PROMPTS, attention_mask=MASK, max_new_tokens=new_tokens, **kwargs)


@torch.no_grad()
def naive_completions(model, new_tokens=8, sample=False):
    """Completions `[B, C]`, each step of each row computed from its whole input, without padding and cache."""
    torch.manual_seed(0)
    config, words = model.config, model.get_input_embeddings().weight
    inputs = [words[ids[ids > 0]] for ids in PROMPTS]  # [t, H] each
    completions = []
    for step in range(new_tokens):
        hidden = torch.stack([model.model(inputs_embeds=row[None]).last_hidden_state[0, -1] for row in inputs])
        scores = model.lm_head(hidden).float()
        thought = step < config.thinking_count
        choices = scores
        if thought and config.token_policy != "sample":
            only = scores.argmax(-1)
            if config.token_policy == "placeholder":
                only = torch.full_like(only, config.thinking_placeholder_id)
            choices = torch.where(torch.nn.functional.one_hot(only, scores.shape[1]) > 0, 0.0, -torch.inf)
        tokens = choices.softmax(-1).multinomial(1).squeeze(1) if sample else choices.argmax(-1)
        fed = words[tokens]
        if thought and config.thinking_mode != "pause":
            mean = scores.softmax(-1).to(words) @ words
            state = {"coconut": hidden, "codi": hidden, "projection": hidden, "soft": mean}[config.thinking_mode]
            if config.thinking_mode in ("codi", "projection"):
                state = model.model.thinking_state(state[:, None], fed[:, None])[:, 0]
            if config.thinking_mode == "projection":
                r, i = model.model.thinking_residual_gate_r(fed), model.model.thinking_residual_gate_i(fed)
                a = torch.exp(model.model.thinking_residual_Lambda() * r)
                state = a * fed + (1 - a**2).sqrt() * (i * state)
            fed = state
        inputs = [torch.cat([row, new[None]]) for row, new in zip(inputs, fed)]
        completions.append(tokens)
    return torch.stack(completions, dim=1)
