"""The layer of a looped Llama: Llama's, with what loops need and the norms and biases of those that people have.

Shapes: B rows, T new positions, H hidden size.
"""

import torch
from torch import nn
from transformers.models.llama.modeling_llama import (
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
)
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from .cache_argument import CACHE
from .configuration_looped import LoopedLlamaConfig
from .loop_lora import add_loop_lora, set_loop


class LoopSlots:
    """A cache as the layers of one loop see it: each of their slots stands `offset` behind the layer's number."""

    def __init__(self, cache, offset: int):
        self.cache, self.offset = cache, offset

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """As of the cache."""
        return self.cache.update(key_states, value_states, layer_idx + self.offset, *args, **kwargs)


class LoopAdapter(nn.Linear):
    """What a loop reads, from what the block read first and the state of the loop before, all `(B, T, H)`."""

    def __init__(self, size: int):
        super().__init__(2 * size, size, bias=False)

    def forward(self, entry: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.cat([entry, states], dim=-1))


class LoopedLlamaAttention(Qwen3Attention):
    """Attention of Llama, Qwen2 or Qwen3, by the config."""

    def __init__(self, config: LoopedLlamaConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        if not config.qk_norm:
            self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if config.qkv_bias:
            for projection in (self.q_proj, self.k_proj, self.v_proj):
                projection.bias = nn.Parameter(torch.zeros(projection.out_features))

    def forward(self, hidden_states: torch.Tensor, only_cache: bool = False, **kwargs):
        """As Qwen3's; with `only_cache` keys and values are written and nothing else is computed."""
        if not only_cache:
            return super().forward(hidden_states, **kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        keys = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)
        values = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        keys, _ = apply_rotary_pos_emb(keys, keys, *kwargs["position_embeddings"])
        kwargs[CACHE].update(keys, values, self.layer_idx)
        return None, None


class LoopedLlamaDecoderLayer(LlamaDecoderLayer):
    """Llama's layer with the config's attention and norms; called once or in a loop."""

    def __init__(self, config: LoopedLlamaConfig, layer_idx: int):
        nn.Module.__init__(self)
        self.hidden_size = config.hidden_size
        self.self_attn = LoopedLlamaAttention(config, layer_idx)
        self.mlp = LlamaMLP(config)
        names = ["input_layernorm", "post_attention_layernorm"]
        behind = ["input_layernorm_2", "post_attention_layernorm_2"]
        for name in names + behind * config.sandwich_norm:
            setattr(self, name, LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps))
        if not config.sandwich_norm:
            self.input_layernorm_2, self.post_attention_layernorm_2 = nn.Identity(), nn.Identity()
        in_a_loop = any(start <= layer_idx < end for start, end in config.loop_blocks)
        self.has_loop_lora = bool(config.loop_lora_r) and in_a_loop
        if self.has_loop_lora:
            add_loop_lora(self, config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        damped_from: torch.Tensor | None = None,
        step: float = 1.0,
        frozen: torch.Tensor | None = None,
        only_cache: bool = False,
        loop: int = 0,
        **kwargs,
    ) -> torch.Tensor:
        """
        States `(B, T, H)` after the layer.

        Args:
            damped_from (`torch.Tensor` of shape `(B, T, H)`, *optional*):
                States before the loop that this layer ends; the output moves `step` of the way from them.
            frozen (`torch.Tensor` of shape `(B, T, 1)`, *optional*):
                Tokens whose states stay as they are.
            only_cache (`bool`, *optional*, defaults to `False`):
                All states stay: the layer only writes to the cache, if there is one.
            loop (`int`, *optional*, defaults to 0):
                The loop that this call belongs to.
        """
        if self.has_loop_lora:  # here, so that a checkpointed layer that is run again is in its loop
            set_loop(self, loop)
        if only_cache:
            if kwargs.get(CACHE) is not None:
                self.self_attn(self.input_layernorm(hidden_states), only_cache=True, **kwargs)
            return hidden_states
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        output = hidden_states + self.input_layernorm_2(attended)
        output = output + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(output)))
        if damped_from is not None:
            output = damped_from + step * (output - damped_from)
        return output if frozen is None else torch.where(frozen, hidden_states, output)
