"""Llama with other norms, positions and MLPs; see `configuration_ablation.py` for the switches.

Neutral setting: the config's defaults give Llama's modules, names and logits.

Shapes: B rows, T new positions, H hidden size.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaMLP,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)

from .cache_argument import CACHE, accepts_cache
from .configuration_ablation import AblationLlamaConfig
from .number_checks import FiniteWeightsMixin


def make_norm(config: AblationLlamaConfig) -> nn.Module:
    """A norm over H of the config's type; `"none"` is the identity."""
    if config.norm_type == "rmsnorm":
        return LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
    if config.norm_type == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.rms_norm_eps)
    return nn.Identity()


def sinusoidal_embedding(position_ids: torch.Tensor, size: int) -> torch.Tensor:
    """
    Positions `(B, T)` as sines and cosines `(B, T, H)`, fp32: `sin(p / 10000^(2i / H))` at 2i and the cosine at 2i +
    1, for an even size H.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    rates = torch.exp(torch.arange(0, size, 2, device=position_ids.device) * (-math.log(10000.0) / size))
    angles = position_ids[..., None].float() * rates  # [B, T, H / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class NoRotation(nn.Module):
    """Stands in for the rotary embedding: cosines 1 and sines 0, so that queries and keys stay as they are."""

    def __init__(self, head_dim: int):
        super().__init__()
        self.head_dim = head_dim

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos = hidden_states.new_ones(*position_ids.shape, self.head_dim)
        return cos, torch.zeros_like(cos)


class UngatedMLP(nn.Module):
    """`W_down act(W_up x)`, [..., H] -> [..., H]."""

    def __init__(self, config: AblationLlamaConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_width, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.mlp_width, config.hidden_size, bias=config.mlp_bias)
        self.act_fn = ACT2FN[config.mlp_type]

    def forward(self, hidden_states):
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class AblationLlamaDecoderLayer(LlamaDecoderLayer):
    """Llama's layer with the config's norms and MLP."""

    def __init__(self, config: AblationLlamaConfig, layer_idx: int):
        nn.Module.__init__(self)
        self.hidden_size = config.hidden_size
        self.is_post_norm = config.norm_position == "post"
        self.self_attn = LlamaAttention(config=config, layer_idx=layer_idx)
        self.mlp = LlamaMLP(config) if config.mlp_type == "swiglu" else UngatedMLP(config)
        self.input_layernorm = make_norm(config)
        self.post_attention_layernorm = make_norm(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        """
        Differs from Llama's in where the norms stand; with `norm_position="post"` `input_layernorm` is the one behind
        attention.
        """
        if not self.is_post_norm:
            return super().forward(hidden_states, **kwargs)
        attended, _ = self.self_attn(hidden_states=hidden_states, **kwargs)
        hidden_states = self.input_layernorm(hidden_states + attended)
        return self.post_attention_layernorm(hidden_states + self.mlp(hidden_states))


class AblationLlamaPreTrainedModel(FiniteWeightsMixin, LlamaPreTrainedModel):
    """Weights, loading and what transformers may do with the model."""

    config: AblationLlamaConfig
    _no_split_modules = ["AblationLlamaDecoderLayer"]
    _can_record_outputs = {"hidden_states": AblationLlamaDecoderLayer, "attentions": LlamaAttention}


class AblationLlamaModel(AblationLlamaPreTrainedModel, LlamaModel):
    """The decoder without head."""

    def __init__(self, config: AblationLlamaConfig):
        # Not LlamaModel's, which would build and initialize a whole Llama first
        LlamaPreTrainedModel.__init__(self, config)
        config.check_switches()
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [AblationLlamaDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = make_norm(config) if config.norm_position == "pre" else nn.Identity()
        rotates = config.position_embedding == "rope"
        self.rotary_emb = LlamaRotaryEmbedding(config=config) if rotates else NoRotation(config.head_dim)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    @accepts_cache
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Differs from Llama's in the positions added to the embeddings. Where `position_ids` are not given, they count
        the tokens of a 2-D `attention_mask`, so that left padding shifts nothing.
        """
        if self.config.position_embedding in ("sinusoidal", "learned"):
            if (input_ids is None) == (inputs_embeds is None):
                raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
            if inputs_embeds is None:
                inputs_embeds, input_ids = self.embed_tokens(input_ids), None
            if position_ids is None:
                position_ids = self._count_positions(inputs_embeds, attention_mask, past_key_values)
            inputs_embeds = self._add_positions(inputs_embeds, position_ids)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{CACHE: past_key_values},
            **kwargs,
        )

    def _count_positions(self, inputs_embeds, attention_mask, past_key_values):
        count = inputs_embeds.shape[1]
        if attention_mask is not None and attention_mask.dim() == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -count:]
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        return (torch.arange(count, device=inputs_embeds.device) + seen)[None]

    def _add_positions(self, inputs_embeds, position_ids):
        if self.config.position_embedding == "sinusoidal":
            table = sinusoidal_embedding(position_ids, self.config.hidden_size).to(inputs_embeds.dtype)
            return inputs_embeds * math.sqrt(self.config.hidden_size) + table
        if not torch.compiler.is_compiling() and position_ids.max() >= self.config.max_position_embeddings:
            raise ValueError(
                f"Position {int(position_ids.max())} has no learned embedding: the model has "
                f"`max_position_embeddings={self.config.max_position_embeddings}`. Shorten the text, or train a model "
                "with more positions."
            )
        return inputs_embeds + self.embed_positions(position_ids)


class AblationLlamaForCausalLM(AblationLlamaPreTrainedModel, LlamaForCausalLM):
    """
    The decoder with a language-modeling head.

    Example:

    ```python
    >>> from hf_evidenceflow import AblationLlamaConfig, AblationLlamaForCausalLM

    >>> model = AblationLlamaForCausalLM(AblationLlamaConfig(norm_position="post", mlp_type="gelu"))
    ```
    """

    def __init__(self, config: AblationLlamaConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = AblationLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()


__all__ = [
    "AblationLlamaConfig",
    "AblationLlamaForCausalLM",
    "AblationLlamaModel",
    "AblationLlamaPreTrainedModel",
]
