"""One tiny random causal LM of each family that the layer-wise tools are tested on."""

import copy

import torch
from tiny_models import TINY
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    MixtralConfig,
    OPTConfig,
    Qwen2Config,
)


_NO_GROUPS = {name: value for name, value in TINY.items() if name != "num_key_value_heads"}
_IDS = {name: TINY[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
_OPT = {
    **{name: value for name, value in _NO_GROUPS.items() if name != "intermediate_size"},
    "ffn_dim": 40,
    "word_embed_proj_dim": 24,
    "dropout": 0.0,
}

CONFIGS = {
    "llama": LlamaConfig(**TINY),
    "qwen2": Qwen2Config(**TINY, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        vocab_size=97,
        n_embd=24,
        n_layer=3,
        n_head=4,
        n_positions=128,
        **_IDS,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
    ),
    "gpt_neox": GPTNeoXConfig(**_NO_GROUPS),
    "gemma": GemmaConfig(**TINY, head_dim=6),
    "gemma2": Gemma2Config(**TINY, head_dim=6, final_logit_softcapping=3.0),
    "mixtral": MixtralConfig(**TINY, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True),
    "mamba": MambaConfig(vocab_size=97, hidden_size=24, num_hidden_layers=3, state_size=4, **_IDS),
    "opt_post_norm": OPTConfig(**_OPT, do_layer_norm_before=False),
}


def tiny_causal_lm(family: str, seed: int = 0):
    """A model of the family with random weights, wide enough that layers differ."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[family]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in name:
                parameter.mul_(5.0)
    return model


def token_ids(rows: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    """Random ids without the special ones."""
    return torch.randint(3, TINY["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))
