"""Llama's attention on the values or scores of earlier layers as well.

Shapes: B rows, T new positions, S positions of the cache, H hidden size, A heads, K key-value heads, D head size, l
the layer, from 0.
"""

import torch
import torch.nn.functional as F
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from .configuration_crosslayer import CrossLayerLlamaConfig
from .score_accumulation import (
    attend,
    concatenate_heads,
    gate_scale,
    initial_log_scale,
    raw_scores,
    score_mask,
    score_scale,
    sum_of_products,
    widens_values,
)
from .term_combination import TermCombination, float32_parameter


class CrossLayerLlamaAttention(TermCombination, LlamaAttention):
    """Llama's attention; with stream `"values"` or `"scores"` on those of earlier layers as well."""

    def __init__(self, config: CrossLayerLlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.stream = config.cross_layer_stream
        if self.stream == "values":
            self.make_combination(config, layer_idx)
        elif self.stream == "scores":
            scaling = config.score_scaling
            if "exponents" in scaling:
                shape = () if scaling == "exponents" else (layer_idx + 1,)
                self.score_b = float32_parameter(*shape)
            if scaling == "exponents":
                self.score_a = float32_parameter()
            if "source" in scaling:
                self.score_log_a = float32_parameter(layer_idx + 1)
            gated = layer_idx and config.cross_layer_gate
            self.cross_layer_gate = float32_parameter() if gated else None

    def init_extra_parameters(self, config: CrossLayerLlamaConfig) -> None:
        """Initial values of the variant's own parameters."""
        if self.stream == "values":
            self.init_combination(config)
        elif self.stream == "scores":
            head, depth = config.score_head_exponent, config.score_depth_exponent
            if config.score_scaling == "exponents":
                init.constant_(self.score_a, head)
                init.constant_(self.score_b, depth)
            if config.score_scaling == "source_exponents":
                init.constant_(self.score_b, head)
            if "source" in config.score_scaling:
                identity = config.identity_init and not config.cross_layer_gate
                log_scale = initial_log_scale(head, depth, self.head_dim, self.layer_idx + 1, identity)
                init.copy_(self.score_log_a, log_scale)
            if self.cross_layer_gate is not None:
                init.zeros_(self.cross_layer_gate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values=None,
        memory: tuple[torch.Tensor, ...] = (),
        earlier_values: tuple[torch.Tensor, ...] | None = None,
        path: str | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | None, ...]:
        """
        Differs from [`~transformers.models.llama.modeling_llama.LlamaAttention`] in these arguments.

        Args:
            memory (`tuple`, *optional*):
                With stream `"values"`: values `(B, K, T, D)`. With `"scores"`: queries `(B, A, T, D)` and keys `(B, K,
                S, D)` in turn, or on the path `"running_sum"` the sum of raw scores `(B, A, T, S)`.
            earlier_values (`tuple` of `torch.Tensor` of shape `(B, K, T, D)`, *optional*):
                Values that earlier layers have at this layer's input; they are cached with the own ones.
            path (`str`, *optional*):
                Way to the scores, see [`score_path`].

        Returns:
            `tuple`: output `(B, T, H)`; probabilities `(B, A, T, S)` or `None`; then what is handed to later layers,
            and with `earlier_values` query, key and those values at all positions `(B, K, S, D)`.
        """
        query = self.q_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        key = self.k_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        value = self.values(hidden_states)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        handed: list[torch.Tensor] = []
        if self.stream == "values":
            value, *handed = self.combine(value, memory)
        if earlier_values:
            value = torch.cat([value, *earlier_values], dim=-1)  # [B, K, T, (l + 1) D]
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if earlier_values is not None:
            value, *earlier = value.split(self.head_dim, dim=-1)
            handed = [query, key, *earlier]
        if self.stream == "scores":
            output, probabilities, *handed = self._attend_scores(query, key, value, attention_mask, memory, path)
            output = self.o_proj(output.flatten(2))
        else:
            output, probabilities = self.attend(query, key, value, attention_mask, **kwargs)
        return output, probabilities, *handed

    def values(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Values `(B, K, T, D)` of a normed input `(B, T, H)`."""
        return self.v_proj(hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(self, query, key, value, attention_mask, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Output `(B, T, H)` after the projection, and probabilities, from queries, keys and values."""
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        output, probabilities = attention(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(output.reshape(*output.shape[:2], -1).contiguous()), probabilities

    def scales(self) -> torch.Tensor | float:
        """Factors of the summed scores: of each layer `(l + 1,)`, or one."""
        config, count = self.config, self.layer_idx + 1
        head, depth = config.score_head_exponent, config.score_depth_exponent
        if config.score_scaling == "exponents":
            head, depth = self.score_a, self.score_b
        elif config.score_scaling == "source_exponents":
            head = self.score_b
        log_scale = self.score_log_a if "source" in config.score_scaling else 0.0
        scales = score_scale(log_scale, head, depth, self.head_dim, count)
        if self.cross_layer_gate is not None:
            scales = gate_scale(scales, self.cross_layer_gate, self.head_dim, count)
        return scales

    def _attend_scores(self, query, key, value, mask, memory, path):
        dropout = self.attention_dropout if self.training else 0.0
        if path == "concatenate":
            queries, keys = (*memory[0::2], query), (*memory[1::2], key)
            long_query, long_key = concatenate_heads(queries, keys, self.scales())
            attention = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", eager_attention_forward)
            if widens_values(query.shape[2], len(queries), query.device):
                value = F.pad(value, (0, long_key.shape[-1] - value.shape[-1]))
            output, _ = attention(self, long_query, long_key, value, mask, dropout=dropout, scaling=1.0)
            return output[..., : self.head_dim], None, query, key
        length = query.shape[2]
        if mask is None and length > 1:  # the first pass into a cache of fixed size
            key, value = key[:, :, :length], value[:, :, :length]
        mask = score_mask(mask, length, key.shape[2], key.device)
        if path == "running_sum":
            scores = raw_scores(query, key)
            if memory:
                scores = memory[0] + scores
            return *attend(scores, value, self.scales(), mask, dropout), scores
        scores = sum_of_products((*memory[0::2], query), (*memory[1::2], key), self.scales())
        return *attend(scores, value, 1.0, mask, dropout), query, key
