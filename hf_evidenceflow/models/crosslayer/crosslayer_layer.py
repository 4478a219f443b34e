"""Llama's layer with terms of earlier layers.

Shapes: B rows, T new positions, S positions of the cache, H hidden size, A heads, K key-value heads, D head size.
"""

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from .cache_argument import accepts_cache
from .configuration_crosslayer import CrossLayerLlamaConfig
from .connections import CONNECTED, add_connections
from .crosslayer_attention import CrossLayerLlamaAttention
from .term_combination import TermCombination


_IN_ATTENTION = ("scores", "values")
_IN_LAYER = ("mlp", "attention", "states", "updates")


class CrossLayerLlamaDecoderLayer(TermCombination, GradientCheckpointingLayer):
    """Llama's layer; what crosses layers comes in as arguments and goes out as return values."""

    def __init__(self, config: CrossLayerLlamaConfig, layer_idx: int):
        super().__init__()
        self.hidden_size = config.hidden_size
        self.stream = config.cross_layer_stream
        self.recomputes = config.cross_layer_terms == "recomputed"
        self.self_attn = CrossLayerLlamaAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if self.stream in _IN_LAYER:  # the embedding is a state, too
            self.make_combination(config, layer_idx + (self.stream in ("states", "updates")))
        elif self.stream in CONNECTED:
            add_connections(self, config, layer_idx)

    def init_extra_parameters(self, config: CrossLayerLlamaConfig) -> None:
        """Initial values of the variant's own parameters."""
        if self.stream in _IN_LAYER:
            self.init_combination(config)

    @accepts_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        *memory: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values=None,
        earlier_layers: tuple[nn.Module, ...] = (),
        **kwargs,
    ) -> tuple[torch.Tensor, ...]:
        """
        Differs from [`~transformers.models.llama.modeling_llama.LlamaDecoderLayer`] in `memory` and `earlier_layers`,
        which are run again.

        `memory` is what earlier layers handed over, as the model keeps it (`config.memory_rule`): terms `(B, T, H)` or
        their running sum; with recomputed terms queries `(B, A, T, D)` and keys `(B, K, S, D)` in turn; for `"values"`
        and `"scores"` see [`CrossLayerLlamaAttention`]; `"streams"` `(B, T, n, H)`; `"blocks"` `(B, T, H)`. Returns
        the output `(B, T, H)`, then what is handed to later layers.
        """
        if self.stream in CONNECTED:
            kwargs |= {"position_embeddings": position_embeddings, "attention_mask": attention_mask}
            return self._run_connected(memory, {**kwargs, "past_key_values": past_key_values})
        residual = hidden_states
        earlier = memory
        attention_arguments = {"memory": memory} if self.stream in _IN_ATTENTION else {}
        if self.recomputes:
            attention_arguments["earlier_values"] = tuple(
                layer.self_attn.values(layer.input_layernorm(residual)) for layer in earlier_layers
            )
        attended, _, *handed = self.self_attn(
            hidden_states=self.input_layernorm(residual),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **attention_arguments,
            **kwargs,
        )
        if self.recomputes:
            earlier = self._run_again(residual, earlier_layers, memory, handed[2:], attention_mask, kwargs)
            handed = handed[:2]

        term = None
        if self.stream == "attention":
            attended, term = self.combine(attended, earlier)
        hidden_states = residual + attended
        output = self.mlp(self.post_attention_layernorm(hidden_states))
        if self.stream == "mlp":
            output, term = self.combine(output, earlier)
        hidden_states = hidden_states + output
        if self.stream == "states":
            hidden_states, term = self.combine(hidden_states, earlier)
        elif self.stream == "updates":
            hidden_states, term = self.combine(hidden_states - residual, earlier, plain=hidden_states)
        if term is not None and not self.recomputes:
            handed = (term,)
        return hidden_states, *handed

    def _run_connected(self, memory, attention_arguments):
        states, weights = self.attention_connection.read(memory)
        attended, _ = self.self_attn(self.input_layernorm(states), **attention_arguments)
        memory = self.attention_connection.write(memory, weights, attended)
        states, weights = self.mlp_connection.read(memory)
        memory = self.mlp_connection.write(memory, weights, self.mlp(self.post_attention_layernorm(states)))
        if self.last_connection is not None:
            return self.last_connection.read(memory)[0], *memory
        return self.mlp_connection.plain(memory), *memory

    def _run_again(self, residual, layers, memory, values, attention_mask, kwargs):
        terms = []
        for layer, query, key, value in zip(layers, memory[0::2], memory[1::2], values, strict=True):
            term, _ = layer.self_attn.attend(query, key, value, attention_mask, **kwargs)
            if self.stream == "mlp":
                term = layer.mlp(layer.post_attention_layernorm(residual + term))
            terms.append(term)
        return tuple(terms)
