"""A tiny config with the features of a real one: same layer types, experts, norms and scales, in small numbers."""

from typing import Any

from transformers import PreTrainedConfig


# What a field becomes where the config has a number for it. Sizes mostly differ, so that swapped axes fail
_TINY = {
    "vocab_size": 61,
    "vocab_size_per_layer_input": 61,
    "hidden_size": 32,
    "hidden_size_per_layer_input": 6,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 2,
    "head_dim": 8,
    "rotary_dim": 4,
    "global_head_dim": 8,
    "max_position_embeddings": 128,
    "sliding_window": 5,
    "attention_chunk_size": 5,
    "initializer_range": 0.3,
    # Experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "intermediate_size_mlp": 24,
    "ffn_hidden_size": 40,
    "expert_ffn_hidden_size": 24,
    "first_k_dense_replace": 1,
    # Latent attention
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 6,
    "qk_head_dim": 14,
    "v_head_dim": 10,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
    # Linear attention and state spaces
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 8,
    "mamba_dt_rank": 4,
    "ssm_state_size": 8,
    "state_size": 8,
    "time_step_rank": 4,
    "lru_width": 32,
    "block_size": 8,
    # Which layers attend, and which have experts
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "expert_layer_period": 2,
    "expert_layer_offset": 1,
}
# Of the saved form, or made anew from the other fields
_LEFT_OUT = ("model_type", "transformers_version", "architectures", "auto_map", "dtype", "quantization_config")
_LEFT_OUT += ("per_layer_config",)
_FEWEST_LAYERS = 2


def tiny_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """
    A small config of the same class; two layers, or one of each type that the layers have.

    Example:

    ```python
    >>> tiny_config(Gemma3TextConfig()).layer_types
    ['sliding_attention', 'full_attention']
    ```
    """
    fields = config.to_dict()
    names = {name: config.attribute_map.get(name, name) for name in (*_TINY, "num_hidden_layers")}
    layers = fields.get(names["num_hidden_layers"])
    kept = _kept_layers(fields, layers)
    tiny: dict[str, Any] = {
        name: [value[place] for place in kept] if _is_by_layer(value, layers) else value
        for name, value in fields.items()
    }
    for name, value in _TINY.items():
        if type(fields.get(names[name])) in (int, float) and fields[names[name]]:
            tiny[names[name]] = value
    if fields.get("kv_lora_rank"):
        tiny["num_key_value_heads"] = tiny["num_attention_heads"]
    tiny[names["num_hidden_layers"]] = len(kept)
    if tiny.get("num_kv_shared_layers"):  # Gemma: the last layers take keys of earlier ones of their type
        tiny |= {name: value * 2 for name, value in tiny.items() if _is_by_layer(fields.get(name), layers)}
        tiny |= {names["num_hidden_layers"]: 2 * len(kept), "num_kv_shared_layers": len(kept)}
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(tiny.get(name), dict):
            tiny[name] = _default_rotary(tiny[name])
    for name in _LEFT_OUT:
        tiny.pop(name, None)
    return type(config)(**tiny | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})


def _is_by_layer(value, layers):
    return isinstance(value, (list, tuple)) and len(value) == layers


def _kept_layers(fields, layers):
    """Places of layers that differ from each other."""
    by_layer = [value for name, value in sorted(fields.items()) if "layer" in name and _is_by_layer(value, layers)]
    first: dict[str, int] = {}
    for place in range(layers):
        first.setdefault(str([value[place] for value in by_layer]), place)
    places = [*first.values()]
    return places if len(places) >= _FEWEST_LAYERS else (places * _FEWEST_LAYERS)[:_FEWEST_LAYERS]


def _default_rotary(parameters):
    """The parameters without scaling to long texts, whose factors have a size of their own."""
    if any(isinstance(value, dict) for value in parameters.values()):
        return {name: _default_rotary(value) if value else value for name, value in parameters.items()}
    rotary = {"rope_type": "default", "rope_theta": parameters.get("rope_theta") or 10000.0}
    kept = "partial_rotary_factor"
    return rotary | ({kept: parameters[kept]} if kept in parameters else {})
