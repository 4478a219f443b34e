"""What a TinySeek costs: parameters, multiplications and cache, from its configuration alone."""

from dataclasses import dataclass

from .configuration_tinyseek import TinySeekConfig


@dataclass(frozen=True)
class CostReport:
    """
    Costs of a [`TinySeekModel`] with head. Made by [`cost_report`].

    Attributes:
        parameters, block_parameters (`int`):
            Parameters that are stored, and those of one block.
        active_parameters (`int`):
            Parameters that a token meets, each counted once: without embeddings of other tokens and idle experts.
        flops_per_token (`int`):
            Multiplications and additions of a forward pass for one token after `context` others, keys and values
            expanded once. Norms, activations and softmax are left out.
        cache_numbers_per_token, expanded_cache_numbers_per_token (`int`):
            Numbers in the KV cache per token, over all layers; and had keys and values been kept instead of the
            latent, as SwitchHead attention does, of which all experts are computed and count as met.
    """

    parameters: int
    block_parameters: int
    active_parameters: int
    flops_per_token: int
    cache_numbers_per_token: int
    expanded_cache_numbers_per_token: int

    def cache_bytes_per_token(self, bytes_per_number: int = 4) -> int:
        """Bytes of the cache per token; 4 bytes per number are fp32, 2 are bf16."""
        return bytes_per_number * self.cache_numbers_per_token


def cost_report(config: TinySeekConfig, context: int = 0) -> CostReport:
    """
    Costs of a model, for a token that attends to `context` others; a `ValueError` if that is negative.

    Example:

    ```python
    >>> report = cost_report(TinySeekConfig())
    >>> report.cache_numbers_per_token, report.expanded_cache_numbers_per_token
    (816, 6528)
    ```
    """
    if context < 0:
        raise ValueError(f"`context` must be at least 0, got {context}.")
    size, depth = config.hidden_size, config.num_hidden_layers
    heads, nope, rope, value = (
        config.num_attention_heads,
        config.qk_nope_head_dim,
        config.qk_rope_head_dim,
        config.v_head_dim,
    )
    latent_query, latent = config.q_lora_rank, config.kv_lora_rank
    expert_width = config.moe_intermediate_size
    is_sigma, choices = config.router_type == "sigma", heads * config.attention_experts
    attention = [  # inputs and outputs of the linear layers
        (size, latent_query),
        (latent_query, heads * nope),
        (latent_query, rope),
        (size, latent + rope),
        (latent, heads * (nope + value)),
        (heads * value, size),
    ]
    if choices:
        attention = [(size, heads * (nope + rope))] * 2 + [(size, choices * value), (choices * value, size)]
        attention += [(size, choices)] * 2
    shared_width = config.n_shared_experts * expert_width
    shared = [(size, shared_width), (shared_width, size)] if shared_width else []
    expert = 2 * size * expert_width + (0 if is_sigma else expert_width + size)
    router = size * config.n_routed_experts
    norms = 4 * size

    biases = sum(outputs for _, outputs in (shared if choices else attention + shared))
    dense = sum(inputs * outputs for inputs, outputs in attention + shared) + biases + norms
    block = dense + (1 if is_sigma else 2) * router + config.n_routed_experts * expert
    # In inference; the noise of the router is for training
    active_block = dense + router + config.num_experts_per_tok * expert
    final_norm = 0 if config.norm_position == "post" else 2 * size
    bias = config.vocab_size if config.lm_head_bias else 0
    embeddings = config.vocab_size * size
    head = 0 if config.tie_word_embeddings else embeddings

    products = sum(inputs * outputs for inputs, outputs in attention + shared)
    products += router + config.num_experts_per_tok * 2 * size * expert_width
    products += (context + 1) * heads * (nope + rope + value)
    expanded = heads * (nope + rope + value)
    numbers = expanded if choices else latent + rope
    return CostReport(
        parameters=embeddings + head + bias + final_norm + config.num_unique_layers * block,
        block_parameters=block,
        active_parameters=embeddings + size + bias + final_norm + config.num_unique_layers * active_block,
        flops_per_token=2 * (depth * products + embeddings),
        cache_numbers_per_token=depth * numbers,
        expanded_cache_numbers_per_token=depth * expanded,
    )
