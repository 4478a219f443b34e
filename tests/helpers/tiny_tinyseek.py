"""A tiny TinySeek with sizes that all differ."""

import torch

from hf_evidenceflow import TinySeekConfig, TinySeekForCausalLM


TINYSEEK = {
    "vocab_size": 97,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 5,
    "n_routed_experts": 7,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 9,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "router_init_std": 0.3,
}
# Settings that make it MoEUT
MOEUT = {
    "num_hidden_layers": 4,
    "num_unique_layers": 2,
    "router_type": "sigma",
    "router_noise": False,
    "norm_position": "peri",
    "attention_experts": 3,
    "n_shared_experts": 0,
}


def tiny_tinyseek(seed=0, **fields):
    """In eval mode, in fp32."""
    torch.manual_seed(seed)
    return TinySeekForCausalLM(TinySeekConfig(**{**TINYSEEK, **fields})).eval()
