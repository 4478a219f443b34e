"""Attention whose values and outputs are mixtures of experts: SwitchHead (arXiv 2312.07987), as in MoEUT (Csordás et
al. 2024, arXiv 2405.16039).

A head has one map for queries and one for keys, of which a part of the channels is rotated, and E maps each for values
and for outputs. Of those a token uses k, by the sigmoids of its scores. All E are computed and those that were not
chosen have weight 0: the same result and the same gradients as computing k, and one product in the place of many small
ones.

Shapes: B rows, T positions, S positions of the cache, H hidden size, A heads, E experts of a head, D value size, R
and N rotated and other channels of a query.
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb, eager_attention_forward

from .cache_argument import accepts_cache
from .configuration_tinyseek import TinySeekConfig
from .expert_routing import mean_choice
from .latent_attention import widened


class SwitchHeadAttention(nn.Module):
    """SwitchHead with rotary embedding. The cache holds keys and mixed values of all heads."""

    def __init__(self, config: TinySeekConfig):
        super().__init__()
        self.config = config
        self.num_heads, self.num_experts = config.num_attention_heads, config.attention_experts
        self.top_k = config.attention_experts_per_tok
        self.num_key_value_groups = 1
        self.rope_size, self.value_size = config.qk_rope_head_dim, config.v_head_dim
        head_size = config.qk_nope_head_dim + config.qk_rope_head_dim
        self.scaling = head_size**-0.5
        self.is_causal = True
        size, choices = config.hidden_size, self.num_heads * self.num_experts
        self.q_proj = nn.Linear(size, self.num_heads * head_size, bias=False)
        self.k_proj = nn.Linear(size, self.num_heads * head_size, bias=False)
        self.v_proj = nn.Linear(size, choices * self.value_size, bias=False)
        self.o_proj = nn.Linear(choices * self.value_size, size, bias=False)
        self.value_router = nn.Linear(size, choices, bias=False)
        self.output_router = nn.Linear(size, choices, bias=False)

    @accepts_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values=None,
        layer_idx: int = 0,
        value_states: torch.Tensor | None = None,
        balance_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """
        As [`TinySeekAttention`], with values made from `value_states` `(B, T, H)` in the place of the states that
        queries, keys and choices are made from. With a `balance_mask` `(B, T)` of the tokens that count the third
        output is the mean choice of experts for values and outputs, `(B, 2 A E)`.
        """
        source = hidden_states if value_states is None else value_states
        value_gates, value_logits = self._choose(self.value_router(hidden_states))
        values = self.v_proj(source).unflatten(-1, (self.num_heads, self.num_experts, -1))  # [B, T, A, E, D]
        value = (values * value_gates).sum(-2).transpose(1, 2)
        key = self._heads(self.k_proj(hidden_states), position_embeddings)
        # Before the queries: a pass that only fills the cache, as of a token that left early, stops here
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, layer_idx)
        query = self._heads(self.q_proj(hidden_states), position_embeddings)
        if self.config._attn_implementation == "sdpa":
            query, key, value = widened(query, key, value)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, probabilities = attend(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )  # [B, T, A, D]
        output_gates, output_logits = self._choose(self.output_router(hidden_states))
        output = self.o_proj((output[..., None, : self.value_size] * output_gates).flatten(2))
        if balance_mask is None:
            return output, probabilities, None
        means = [mean_choice(logits, balance_mask).flatten(1) for logits in (value_logits, output_logits)]
        return output, probabilities, torch.cat(means, dim=-1)

    def _heads(self, states, position_embeddings):
        """`(B, A, T, R + N)`, of which the first R are rotated."""
        heads = states.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        turned, _ = apply_rotary_pos_emb(*[heads[..., : self.rope_size]] * 2, *position_embeddings)
        return torch.cat([turned, heads[..., self.rope_size :]], dim=-1)

    def _choose(self, logits):
        """Weights `(B, T, A, E, 1)` of the experts, 0 where not chosen, and the scores `(B, T, A, E)`."""
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = scores.unflatten(-1, (self.num_heads, self.num_experts))
        values, indices = scores.topk(self.top_k, dim=-1)
        gates = torch.zeros_like(scores).scatter(-1, indices, values.sigmoid())
        return gates.to(logits.dtype)[..., None], scores
