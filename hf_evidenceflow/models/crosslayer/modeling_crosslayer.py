"""Llama whose layers see more than the residual stream.

Variants v2 (stored outputs of earlier layers), v3 (earlier layers run again on this layer's input with their own
attention probabilities) and v4 (attention scores summed over layers); value residual (ResFormer, arXiv 2410.17897,
learned weights of the first layer's and the own values, 1/2 at init); DenseFormer (arXiv 2402.02622, depth-weighted
average after each layer); depth attention (attention residuals with one layer per block; deviation in `accumulation`).
Hyper-connections and attention over blocks take the place of the residual additions: see `hyper_connections` and
`block_attention`.

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
| depth_attention, block_attention | zero query: exact up to rounding, with or without `identity_init` |
| hyper_connections, mhc | one stream read, equal shares written: up to rounding (mhc: 1e-6), with or without it |
| v2m1, v2m2, v3m1, v3m2, v3m3_1, v3m4_1, v4m1, v4m2, v4m3, v4m4 | `cross_layer_gate` at 0: exact up to rounding |
| block_attention_normed | the same |

The gate is a deviation. It mixes the combined term with the own one (for scores: the scales, so one softmax remains).
While it is 0, the exponents of v4m4 have no gradient; it gets one at the first step.

Shapes: B rows, T new positions, S positions of the cache, H hidden size, A heads, K key-value heads, D head size,
L layers, l the layer, from 0.
"""

import torch
from torch import nn
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .block_attention import BlockConnection
from .cache_argument import CACHE, accepts_cache
from .configuration_crosslayer import CrossLayerLlamaConfig
from .connections import first_memory
from .crosslayer_attention import CrossLayerLlamaAttention
from .crosslayer_layer import CrossLayerLlamaDecoderLayer
from .extra_parameters import EXTRA_PARAMETER_NAMES
from .hyper_connections import StreamConnection, StreamReadout
from .number_checks import FiniteWeightsMixin
from .score_accumulation import score_path


_WITH_EXTRA_PARAMETERS = (
    *(CrossLayerLlamaAttention, CrossLayerLlamaDecoderLayer),
    *(BlockConnection, StreamConnection, StreamReadout),
)


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
        if isinstance(module, _WITH_EXTRA_PARAMETERS):
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
        memory = first_memory(config, inputs_embeds)
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
