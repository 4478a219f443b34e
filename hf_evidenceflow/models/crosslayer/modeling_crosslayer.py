"""Llama whose layers see more than the residual stream.

Variants v2 (stored outputs of earlier layers), v3 (earlier layers run again on this layer's input with their own
attention probabilities) and v4 (attention scores summed over layers); value residual (ResFormer, arXiv 2410.17897,
learned weights of the first layer's and the own values, 1/2 at init); DenseFormer (arXiv 2402.02622, depth-weighted
average after each layer); depth attention (attention residuals with one layer per block; deviation in `accumulation`).
Hyper-connections (arXiv 2409.19606) are left out: they change the number of streams, not what a layer takes.

v3 computes A_i V_i as attention with the queries and keys of layer i, so no probabilities are stored. Its decoding
needs V_i of the current layer's input at all past positions: they widen the layer's own cached values to `(l + 1) D`.
That is L (L - 1) / 2 more values of `K D` numbers per token, where the layers' inputs would be L of H numbers. Inputs
hold fewer in a deep model without grouped heads, but then norm and projection of the whole past would run again for
each new token and pair of layers. A layer that runs earlier ones again needs their weights: sharding that gathers one
layer at a time (FSDP, ZeRO-3) does not go with v3.

What `identity_init=True` does (l > 0; layer 0 of each of these is Llama's already, of DenseFormer and depth attention
with its own parameters):

| variant | way to Llama |
| --- | --- |
| v2m3, v3m3_2, v3m4_2 | finite logit of the own term: the earlier ones share 0.001 of the softmax |
| v4m5, v4m6, v4m7 | log a_i of earlier layers up: their scales sum to 0.001 of the own one |
| value_residual, denseformer, other `linear` combinations | weights 0, .., 0, 1: exact |
| depth_attention | zero query: exact up to rounding, with or without `identity_init` |
| v2m1, v2m2, v3m1, v3m2, v3m3_1, v3m4_1, v4m1, v4m2, v4m3, v4m4 | `cross_layer_gate` at 0: exact up to rounding |

The gate is a deviation. It mixes the combined term with the own one (for scores: the scales, so one softmax remains).
While it is 0, the exponents of v4m4 have no gradient; it gets one at the first step.

Shapes: B rows, T new positions, S positions of the cache, H hidden size, A heads, K key-value heads, D head size,
L layers, l the layer, from 0.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .accumulation import apply_gate, combine_running, combine_terms, initial_weights
from .cache_argument import CACHE, accepts_cache
from .configuration_crosslayer import CrossLayerLlamaConfig
from .extra_parameters import EXTRA_PARAMETER_NAMES
from .number_checks import FiniteWeightsMixin
from .score_accumulation import (
    attend,
    concatenate_heads,
    gate_scale,
    initial_log_scale,
    raw_scores,
    score_mask,
    score_path,
    score_scale,
    sum_of_products,
    widens_values,
)


_WEIGHTS = {
    "mlp": "mlp_residual_weights",
    "attention": "attn_residual_weights",
    "values": "value_residual_weights",
    "states": "state_residual_weights",
    "updates": "state_residual_weights",
}
_IN_ATTENTION = ("scores", "values")


def _float32_parameter(*shape):
    # With bf16's 8 bits, small steps of a scalar near 1 are rounded away
    return nn.Parameter(torch.empty(shape, dtype=torch.float32))


class TermCombination:
    """Mixin of the module that combines its own term with those of earlier layers: holds weights and gate."""

    def make_combination(self, config: CrossLayerLlamaConfig, layer_idx: int) -> None:
        """Adds the parameters of layer `layer_idx`; their values come from [`init_combination`]."""
        stream, self.combination = config.cross_layer_stream, config.cross_layer_combination
        self.is_running = config.memory_rule == "replace"
        # The embedding is a state, too
        earlier = layer_idx + (stream in ("states", "updates"))
        self.num_terms = 1 + (min(earlier, 1) if config.cross_layer_sources == "first" else earlier)
        self.weights_name, size = None, self.num_terms
        if earlier and self.combination in ("softmax", "linear"):
            self.weights_name = _WEIGHTS[stream]
        elif earlier and self.combination == "depth_attention":
            self.weights_name, size = "depth_query", config.hidden_size
        if self.weights_name:
            self.register_parameter(self.weights_name, _float32_parameter(size))
        self.cross_layer_gate = _float32_parameter() if earlier and config.cross_layer_gate else None

    def init_combination(self, config: CrossLayerLlamaConfig) -> None:
        """Initial values; no random numbers are drawn, so a seed gives all variants the same linear layers."""
        if self.cross_layer_gate is not None:
            init.zeros_(self.cross_layer_gate)
        if self.weights_name == "depth_query":
            init.zeros_(self.depth_query)
        elif self.weights_name:
            stream = config.cross_layer_stream
            identity = stream == "states" or (config.identity_init and not config.cross_layer_gate)
            weights = initial_weights(self.combination, self.num_terms, identity)
            if stream == "updates":  # their sum is Llama's state
                weights = torch.ones(self.num_terms)
            init.copy_(getattr(self, self.weights_name), weights)

    def combine(
        self, own: torch.Tensor, earlier: tuple, plain: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Combines this layer's term `own` with `earlier` ones, first to last, or their running sum, all `(..., D)`.
        `plain` is what Llama has in the place of the combination, if not `own`.

        Returns the combination, and what is handed to later layers: `own`, or the running sum.
        """
        if not earlier:
            return own, own
        if self.is_running:
            handed = earlier[0] + own
            combined = combine_running(handed, self.num_terms, self.combination)
        else:
            handed = own
            weights = getattr(self, self.weights_name) if self.weights_name else None
            combined = combine_terms((*earlier, own), self.combination, weights)
        return apply_gate(own if plain is None else plain, combined, self.cross_layer_gate), handed


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
                self.score_b = _float32_parameter(*shape)
            if scaling == "exponents":
                self.score_a = _float32_parameter()
            if "source" in scaling:
                self.score_log_a = _float32_parameter(layer_idx + 1)
            gated = layer_idx and config.cross_layer_gate
            self.cross_layer_gate = _float32_parameter() if gated else None

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
        if self.stream not in ("none", *_IN_ATTENTION):
            self.make_combination(config, layer_idx)

    def init_extra_parameters(self, config: CrossLayerLlamaConfig) -> None:
        """Initial values of the variant's own parameters."""
        if self.stream not in ("none", *_IN_ATTENTION):
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
        and `"scores"` see [`CrossLayerLlamaAttention`]. Returns the output `(B, T, H)`, then what is handed to later
        layers.
        """
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

    def _run_again(self, residual, layers, memory, values, attention_mask, kwargs):
        terms = []
        for layer, query, key, value in zip(layers, memory[0::2], memory[1::2], values, strict=True):
            term, _ = layer.self_attn.attend(query, key, value, attention_mask, **kwargs)
            if self.stream == "mlp":
                term = layer.mlp(layer.post_attention_layernorm(residual + term))
            terms.append(term)
        return tuple(terms)


class CrossLayerLlamaPreTrainedModel(FiniteWeightsMixin, LlamaPreTrainedModel):
    """Weights, loading and what transformers may do with the model."""

    config: CrossLayerLlamaConfig
    _no_split_modules = ["CrossLayerLlamaDecoderLayer"]
    _keep_in_fp32_modules_strict = list(EXTRA_PARAMETER_NAMES)
    _can_record_outputs = {"hidden_states": CrossLayerLlamaDecoderLayer, "attentions": CrossLayerLlamaAttention}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, variant=None, **kwargs):
        """
        As in transformers, from a checkpoint of this class or of a plain Llama, but `variant` is the config's field,
        not the suffix of a weight file. Other fields of the config can be given as well.
        """
        if variant is not None:
            if config is not None:
                raise ValueError(f"Give `config` or `variant`, not both: set `variant`={variant!r} in the config.")
            kwargs["cross_layer_variant"] = variant  # transformers would take `variant` for itself
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)

    def no_weight_decay(self) -> set[str]:
        """Last parts of the names of parameters that weight decay leaves alone (timm's convention)."""
        return set(EXTRA_PARAMETER_NAMES)

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, (CrossLayerLlamaAttention, CrossLayerLlamaDecoderLayer)):
            module.init_extra_parameters(self.config)


class CrossLayerLlamaModel(CrossLayerLlamaPreTrainedModel):
    """
    The decoder without head. With variant `"base"` it is [`~transformers.LlamaModel`] to the bit.
    """

    def __init__(self, config: CrossLayerLlamaConfig):
        super().__init__(config)
        config.check_cross_layer()
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [CrossLayerLlamaDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        self.gradient_checkpointing = False
        self.post_init()

    @accepts_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Arguments and output are those of [`~transformers.LlamaModel`]."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        self._check_cache(past_key_values)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen)[None]
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: past_key_values},
        )
        config = self.config
        layers = tuple(self.layers[: config.num_hidden_layers])
        if config.cross_layer_stream == "scores":
            # Once a pass: layers that are computed again in the backward pass must take the same way
            kwargs["path"] = score_path(
                config._attn_implementation,
                config.scale_per_layer,
                inputs_embeds.shape[1],
                self.training and layers[0].gradient_checkpointing,
            )
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        memory = (inputs_embeds,) if config.cross_layer_stream in ("states", "updates") else ()
        for layer_idx, layer in enumerate(layers):
            if config.cross_layer_terms == "recomputed":
                kwargs["earlier_layers"] = layers[:layer_idx]
            # The memory is positional, for reentrant checkpointing
            hidden_states, *handed = layer(
                hidden_states,
                *memory,
                attention_mask=causal_mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                use_cache=use_cache,
                **{CACHE: past_key_values},
                **kwargs,
            )
            if config.memory_rule == "replace" or kwargs.get("path") == "running_sum":
                memory = handed
            elif config.memory_rule == "append" or not memory:
                memory = (*memory, *handed)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), **{CACHE: past_key_values})

    def _check_cache(self, cache):
        if self.config.cross_layer_terms != "recomputed" or cache is None or len(cache.layers) < 2:
            return
        found, width = cache.layers[1].values, 2 * self.layers[1].self_attn.head_dim
        if found is not None and found.dim() == 4 and found.shape[3] != width:
            raise ValueError(
                f"`past_key_values` holds values of shape {tuple(found.shape)} in the second layer, as prefix tuning "
                f"makes them, and the variant {self.config.variant!r} caches {width} numbers a head there, since it "
                "runs earlier layers again. Use LoRA or prompt tuning in the place of prefix tuning, and caches that "
                "this model has filled."
            )


class CrossLayerLlamaForCausalLM(CrossLayerLlamaPreTrainedModel, LlamaForCausalLM):
    """
    The decoder with a language-modeling head.

    Example:

    ```python
    >>> from hf_evidenceflow import CrossLayerLlamaForCausalLM

    >>> model = CrossLayerLlamaForCausalLM.from_pretrained("path/to/llama", variant="v2m3", identity_init=True)
    ```
    """

    def __init__(self, config: CrossLayerLlamaConfig):
        # Not LlamaForCausalLM's, which would build and initialize a whole Llama first
        LlamaPreTrainedModel.__init__(self, config)
        self.model = CrossLayerLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _get_static_cache_init_shape(self):
        # The values of v3 are wider than the keys: the cache learns its shapes at the first update
        recomputed = self.config.cross_layer_terms == "recomputed"
        return None if recomputed else super()._get_static_cache_init_shape()


__all__ = [
    "CrossLayerLlamaConfig",
    "CrossLayerLlamaForCausalLM",
    "CrossLayerLlamaModel",
    "CrossLayerLlamaPreTrainedModel",
]
