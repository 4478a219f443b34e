"""TinySeek: a decoder whose block is applied in a loop, with latent attention and many small experts.

Source: the published TinySeek (github.com/lybx-leyw/tinyseek-UT and tinyseek-ai). Deviations, each for a fault of that
code: the balance loss has a gradient and leaves out padding; noise on the router's logits in training only; padding is
masked on keys. Initial weights are normal. Latent attention follows DeepSeek-V2 (arXiv 2405.04434, section 2.1) with
one rotary query and key that all heads share, and without norms on the latents. MoEUT (arXiv 2405.16039) is had by
settings, see [`TinySeekConfig.moeut`].

Shapes: B rows, T positions, S positions of the cache, H hidden size, A heads, N tokens, E experts, k of each token.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, initialization as init
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding, eager_attention_forward
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .cache_argument import CACHE, accepts_cache
from .configuration_tinyseek import TinySeekConfig
from .expert_routing import balance_loss, entropy_balance, mean_choice, sigmoid_gates, top_k_gates
from .latent_attention import absorbed_attention, absorbing_is_cheaper, expand_latent, rotate_pairs, widened
from .number_checks import FiniteWeightsMixin
from .sparse_experts import SparseExperts, SparseRouting
from .switch_attention import SwitchHeadAttention


LOOP_SHARE = 16  # measured: for fewer pairs than 1 in 16 experts a loop is faster than a grouped product over all


def looped_experts_forward(experts, hidden_states, indices, gates):
    """The plain loop over the experts in use; `(N, H)` from tokens `(N, H)`, indices and gates `(N, k)`."""
    output = torch.zeros_like(hidden_states)
    for expert in indices.unique().tolist():
        token, place = torch.where(indices == expert)
        inner = F.linear(hidden_states[token], experts.up_proj[expert], experts.up_proj_bias[expert])
        outer = F.linear(experts.act_fn(inner), experts.down_proj[expert], experts.down_proj_bias[expert])
        output.index_add_(0, token, (outer * gates[token, place, None]).to(output.dtype))
    return output


def grouped_experts_forward(experts, hidden_states, indices, gates):
    """transformers' grouped experts; on CPU, where nothing is compiled, our faster ones."""
    weights = (experts.up_proj, experts.up_proj_bias, experts.down_proj, experts.down_proj_bias)
    if not runs_sparse(experts.up_proj):
        # torch's grouped product takes rows of whole 16 bytes only
        ragged = any(weight.shape[-1] * weight.element_size() % 16 for weight in weights[::2])
        if ragged and not torch.compiler.is_compiling():
            return looped_experts_forward(experts, hidden_states, indices, gates)
        return grouped_mm_experts_forward(experts, hidden_states, indices, gates)
    if not torch.is_grad_enabled() and LOOP_SHARE * indices.numel() <= experts.num_experts:
        return looped_experts_forward(experts, hidden_states, indices, gates)
    with torch.autocast(device_type="cpu", enabled=False):
        tokens, gates = hidden_states.to(weights[0].dtype), gates.to(weights[0].dtype)
        return SparseExperts.apply(tokens, indices, gates, *weights, experts.act_fn).to(hidden_states.dtype)


def runs_sparse(weight):
    """Whether the versions of `sparse_experts` are used for these weights."""
    plain = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64, torch.bfloat16)
    return plain and not torch.compiler.is_compiling()


EXPERTS = ExpertsInterface()
EXPERTS["grouped_mm"] = grouped_experts_forward


class TinySeekAttention(nn.Module):
    """
    Multi-head latent attention. The cache holds latent and rotary key only, C + R numbers per token and layer; short
    passes over a long cache absorb the up-projections instead of expanding it.
    """

    def __init__(self, config: TinySeekConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.num_key_value_groups = 1
        self.nope_size, self.rope_size = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.latent_size, self.value_size = config.kv_lora_rank, config.v_head_dim
        self.scaling = (self.nope_size + self.rope_size) ** -0.5
        self.is_causal = True
        self.q_a_proj = nn.Linear(config.hidden_size, config.q_lora_rank)
        self.q_b_proj = nn.Linear(config.q_lora_rank, self.num_heads * self.nope_size)
        self.q_rope_proj = nn.Linear(config.q_lora_rank, self.rope_size)
        self.kv_a_proj_with_mqa = nn.Linear(config.hidden_size, self.latent_size + self.rope_size)
        self.kv_b_proj = nn.Linear(self.latent_size, self.num_heads * (self.nope_size + self.value_size))
        self.o_proj = nn.Linear(self.num_heads * self.value_size, config.hidden_size)

    @accepts_cache
    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values=None,
        layer_idx: int = 0,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        As in transformers' attention modules; `layer_idx` is the number of this call in the forward pass, since a
        block is called several times. Returns the output `(B, T, H)` and the probabilities `(B, A, T, S)` or `None`.
        """
        latent, rotary_key = self.kv_a_proj_with_mqa(hidden_states)[:, None].split(
            [self.latent_size, self.rope_size], dim=-1
        )  # [B, 1, T, C], [B, 1, T, R]
        rotary_key = rotate_pairs(rotary_key, *position_embeddings)
        # Before the queries: a pass that only fills the cache, as of a token that left early, stops here
        if past_key_values is not None:
            latent, rotary_key = past_key_values.update(latent, rotary_key, layer_idx)
        latent_query = self.q_a_proj(hidden_states)
        query = self.q_b_proj(latent_query).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, A, T, N]
        rotary_query = rotate_pairs(self.q_rope_proj(latent_query)[:, None], *position_embeddings)

        if past_key_values is not None and self._absorbs(query.shape[2], latent.shape[2], attention_mask):
            weight, value_bias = self._up_projection()
            output, probabilities = absorbed_attention(
                query, rotary_query, latent, rotary_key, weight, value_bias, self.scaling, attention_mask
            )
        else:
            key, value = expand_latent(latent, self.kv_b_proj, self.num_heads, self.nope_size)
            query = torch.cat([query, rotary_query.expand(-1, self.num_heads, -1, -1)], dim=-1)
            key = torch.cat([key, rotary_key.expand(-1, self.num_heads, -1, -1)], dim=-1)
            if self.config._attn_implementation == "sdpa":
                query, key, value = widened(query, key, value)
            attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
            output, probabilities = attend(
                self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
            )
            output = output[..., : self.value_size]
        return self.o_proj(output.flatten(2)), probabilities

    def _absorbs(self, new, cached, mask):
        # A hook on the projection, as PEFT's for an adapter of each row, has to see what is projected
        if self.kv_b_proj._forward_pre_hooks:
            return False
        # Without a mask, more than one new position means causal attention. Flex attention has a mask of its own
        if not (torch.is_tensor(mask) or (mask is None and new == 1)):
            return False
        return absorbing_is_cheaper(new, cached, self.latent_size, self.nope_size, self.value_size)

    def _up_projection(self):
        """Weight `(A, N + D, C)` of the up-projection, and its bias for the values `(A, D)`."""
        projection = self.kv_b_proj
        if type(projection) is nn.Linear:
            weight, bias = projection.weight, projection.bias
        else:  # an adapter, or quantized
            identity = torch.eye(self.latent_size, device=projection.weight.device, dtype=self.o_proj.weight.dtype)
            bias = projection(torch.zeros_like(identity[:1]))[0]
            weight = (projection(identity) - bias).T
        return weight.unflatten(0, (self.num_heads, -1)), bias.unflatten(0, (self.num_heads, -1))[:, self.nope_size :]


class TinySeekRouter(nn.Module):
    """Chooses the experts of each token, with noise on the logits in training."""

    def __init__(self, config: TinySeekConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.is_sigma = config.router_type == "sigma"
        noise = None if self.is_sigma else nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_parameter("noise_weight", noise)
        self.noise = config.router_noise

    def forward(
        self, hidden_states: torch.Tensor, with_logits: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Logits `(N, E)` in at least fp32, gates and indices `(N, k)` of tokens `(N, H)`; with `with_logits` the logits
        and those of a sigma-MoE have a gradient.
        """
        dtype = torch.promote_types(hidden_states.dtype, torch.float32)
        with torch.autocast(device_type=hidden_states.device.type, enabled=False):
            tokens, weight = hidden_states.to(dtype), self.weight.to(dtype)
            if self.is_sigma:
                logits = F.linear(tokens, weight)
                return logits, *sigmoid_gates(logits, self.top_k)
            noise_weight = self.noise_weight.to(dtype) if self.noise and self.training else None
            if runs_sparse(weight) and not with_logits:
                return SparseRouting.apply(tokens, weight, noise_weight, self.top_k)
            logits = F.linear(tokens, weight)
            if noise_weight is not None:
                noise = torch.randn_like(logits)
                logits = torch.addcmul(logits, noise, F.softplus(F.linear(tokens, noise_weight)))
            return logits, *top_k_gates(logits, self.top_k)


@use_experts_implementation(experts_interface=EXPERTS, has_gate=False, has_bias=True)
class TinySeekExperts(nn.Module):
    """The routed experts, stacked. What runs is the config's `experts_implementation`, by default grouped products."""

    def __init__(self, config: TinySeekConfig):
        super().__init__()
        self.num_experts = config.n_routed_experts
        inner, outer = config.moe_intermediate_size, config.hidden_size
        for name, shape in (("up_proj", (inner, outer)), ("down_proj", (outer, inner))):
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_experts, *shape)))
            bias = torch.zeros(self.num_experts, shape[0])
            if config.router_type == "sigma":  # the products of experts take biases: constant zeros
                self.register_buffer(f"{name}_bias", bias, persistent=False)
            else:
                self.register_parameter(f"{name}_bias", nn.Parameter(bias))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor, indices: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """`(N, H)` from tokens `(N, H)`, indices and gates `(N, k)`; here the implementation `eager`."""
        return looped_experts_forward(self, hidden_states, indices, gates)


class TinySeekSharedExperts(nn.Module):
    """The experts that each token passes, fused: their sum is one feed-forward network of their joint width."""

    def __init__(self, config: TinySeekConfig):
        super().__init__()
        width = config.n_shared_experts * config.moe_intermediate_size
        self.up_proj = nn.Linear(config.hidden_size, width)
        self.down_proj = nn.Linear(width, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.up_proj(hidden_states)))


class TinySeekMoE(nn.Module):
    """Routed and shared experts."""

    def __init__(self, config: TinySeekConfig):
        super().__init__()
        self.config = config
        self.gate = TinySeekRouter(config)
        self.experts = TinySeekExperts(config)
        self.shared_experts = TinySeekSharedExperts(config) if config.n_shared_experts else None

    def forward(
        self,
        hidden_states: torch.Tensor,
        with_balance: bool = False,
        token_mask: torch.Tensor | None = None,
        output_router_logits: bool | None = None,
        router_states: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Output `(B, T, H)`, and the balance loss `()` over the tokens of `token_mask` `(B, T)`, of a sigma-MoE the mean
        choice `(B, E)`, or `None` without `with_balance`. `output_router_logits` is the config's if not given;
        `router_states` `(B, T, H)`, if given, are what the experts are chosen by.
        """
        tokens = hidden_states.flatten(0, 1)
        routed = tokens if router_states is None else router_states.flatten(0, 1)
        if output_router_logits is None:
            output_router_logits = self.config.output_router_logits
        logits, gates, indices = self.gate(routed, output_router_logits)
        balance = None
        if with_balance and self.gate.is_sigma:
            balance = mean_choice(logits.unflatten(0, hidden_states.shape[:2]), _counted(token_mask, hidden_states))
        elif with_balance:
            mask = None if token_mask is None else token_mask.flatten()
            balance = balance_loss(gates, indices, self.experts.num_experts, mask)
        output = self.experts(tokens, indices, gates.to(tokens.dtype)).view_as(hidden_states)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output, balance


def _counted(token_mask, states):
    return states.new_ones(states.shape[:2]) if token_mask is None else token_mask


class TinySeekBlock(GradientCheckpointingLayer):
    """Attention and experts with their layer norms; called once or in a loop."""

    def __init__(self, config: TinySeekConfig):
        super().__init__()
        self.norm_position = config.norm_position
        self.has_switch_heads = bool(config.attention_experts)
        self.self_attn = SwitchHeadAttention(config) if self.has_switch_heads else TinySeekAttention(config)
        self.mlp = TinySeekMoE(config)
        self.attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        with_balance: bool = False,
        token_mask: torch.Tensor | None = None,
        output_router_logits: bool | None = None,
        active_tokens: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Output `(B, T, H)` and the balance loss `()` or `None`; arguments as in [`TinySeekMoE`] and
        [`TinySeekAttention`]. With `router_type="sigma"` the second are mean choices, as [`entropy_balance`] takes
        them.

        `active_tokens` `(B, T)` is `False` at tokens whose output is not needed, as of those that left early: their
        experts are not run.
        """
        mix = partial(self._mix, options=(with_balance, token_mask, output_router_logits), active=active_tokens)
        switch = {}
        if self.has_switch_heads and with_balance:
            switch["balance_mask"] = _counted(token_mask, hidden_states)
        if self.norm_position == "post":
            attended, _, *choice = self.self_attn(hidden_states, **switch, **kwargs)
            hidden_states = self.attention_layernorm(hidden_states + self.dropout(attended))
            mixed, balance = mix(hidden_states)
            return self.mlp_layernorm(hidden_states + self.dropout(mixed)), _joined(balance, choice)
        if self.norm_position == "peri":
            switch["value_states"] = hidden_states
        attended, _, *choice = self.self_attn(self.attention_layernorm(hidden_states), **switch, **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        normed = self.mlp_layernorm(hidden_states)
        mixed, balance = mix(hidden_states, normed) if self.norm_position == "peri" else mix(normed)
        return hidden_states + self.dropout(mixed), _joined(balance, choice)

    def _mix(self, hidden_states, router_states=None, *, options, active):
        if active is None:
            return self.mlp(hidden_states, *options, router_states=router_states)
        mixed = torch.zeros_like(hidden_states)
        routed = None if router_states is None else router_states[active][None]
        mixed[active] = self.mlp(hidden_states[active][None], router_states=routed)[0][0]
        return mixed, None


def _joined(balance, choice):
    """What the experts and the heads' experts have to balance, in one tensor."""
    return balance if balance is None or not choice else torch.cat([balance, *choice], dim=-1)


class TinySeekPreTrainedModel(FiniteWeightsMixin, PreTrainedModel):
    """Weights, loading and what transformers may do with the model."""

    config: TinySeekConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["TinySeekBlock"]
    _skip_keys_device_placement = [CACHE]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": TinySeekBlock,
        "attentions": [TinySeekAttention, SwitchHeadAttention],
        "router_logits": OutputRecorder(TinySeekRouter, index=0),
    }

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, TinySeekRouter):
            for weight in module.parameters():
                init.normal_(weight, mean=0.0, std=self.config.router_init_std)
        elif isinstance(module, TinySeekExperts):
            for weight in (module.up_proj, module.down_proj):
                init.normal_(weight, mean=0.0, std=self.config.initializer_range)
            for bias in (module.up_proj_bias, module.down_proj_bias):
                init.zeros_(bias)


class TinySeekModel(TinySeekPreTrainedModel):
    """The decoder without head."""

    def __init__(self, config: TinySeekConfig):
        super().__init__(config)
        config.check()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList([TinySeekBlock(config) for _ in range(config.num_unique_layers)])
        if config.norm_position != "post":
            self.norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.rotary_emb = DeepseekV3RotaryEmbedding(config)
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
        balance_losses: list[torch.Tensor] | None = None,
        **kwargs,
    ) -> MoeModelOutputWithPast:
        r"""`balance_losses` is a list that receives the balance loss of each layer, for [`TinySeekForCausalLM`]."""
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
        hidden_states = inputs_embeds
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        token_mask = None
        if attention_mask is not None and attention_mask.dim() == 2:
            token_mask = attention_mask[:, -inputs_embeds.shape[1] :]
        # Read anew each time: `assistant_early_exit` lowers it for the draft
        for layer_idx in range(self.config.num_hidden_layers):
            hidden_states, balance = self.layers[layer_idx % len(self.layers)](
                hidden_states,
                with_balance=balance_losses is not None,
                token_mask=token_mask,
                position_embeddings=position_embeddings,
                attention_mask=causal_mask,
                layer_idx=layer_idx,
                **{CACHE: past_key_values},
                **kwargs,
            )
            if balance is not None:
                balance_losses.append(balance)
        if self.config.norm_position != "post":
            hidden_states = self.norm(hidden_states)
        return MoeModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE: past_key_values})

    def _check_cache(self, cache):
        found = cache.layers[0].keys if cache is not None and cache.layers else None
        if found is None or found.dim() != 4:
            return
        config, expected = self.config, (1, self.config.kv_lora_rank)
        if config.attention_experts:
            expected = (config.num_attention_heads, config.qk_nope_head_dim + config.qk_rope_head_dim)
        if (found.shape[1], found.shape[3]) != expected:
            raise ValueError(
                f"`past_key_values` holds keys of shape {tuple(found.shape)}, as prefix tuning makes them, and this "
                f"TinySeek caches {expected[0]} of {expected[1]} numbers per position. Use LoRA or prompt tuning in "
                "the place of prefix tuning, and caches that TinySeek has filled."
            )


class TinySeekForCausalLM(TinySeekPreTrainedModel, GenerationMixin):
    """The decoder with a language-modeling head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: TinySeekConfig):
        super().__init__(config)
        self.model = TinySeekModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

    @accepts_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MoeCausalLMOutputWithPast:
        r"""
        Args:
            labels (`torch.LongTensor` of shape `(B, T)`, *optional*):
                Not shifted; -100 is left out. With them the output has `loss` (cross-entropy, and the balance loss
                times `router_aux_loss_coef`) and `aux_loss` (the balance loss, summed over the layers).

        Returns:
            [`~transformers.modeling_outputs.MoeCausalLMOutputWithPast`]; its `router_logits`, with
            `output_router_logits=True`, are a tensor `(B T, E)` for each layer.
        """
        balance_losses = [] if labels is not None and self.config.router_aux_loss_coef else None
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            balance_losses=balance_losses,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = balance = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
            if balance_losses:
                balance = self._balance(balance_losses)
                items = kwargs.get("num_items_in_batch")
                # A micro-batch's share of the batch, so that accumulation does not multiply the term
                share = 1.0 if items is None else (labels[:, 1:] != -100).sum() / items
                loss = loss + self.config.router_aux_loss_coef * share * balance.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=balance,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
            **{CACHE: outputs.get(CACHE)},
        )

    def _balance(self, calls):
        config = self.config
        if config.router_type == "sigma":
            return entropy_balance(calls, config.num_unique_layers, config.n_routed_experts, config.attention_experts)
        return torch.stack(calls).sum()


__all__ = ["TinySeekConfig", "TinySeekForCausalLM", "TinySeekModel", "TinySeekPreTrainedModel"]
