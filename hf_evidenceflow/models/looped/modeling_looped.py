"""Llama whose layers, or blocks of them, run several times; see `configuration_looped.py` for the switches.

Loads the checkpoints of plain Llama and Qwen models, of Ouro (arXiv 2510.25741) and of Nanbeige4.2 (arXiv 2607.17805):
the names of the weights are theirs. Neutral setting: one loop and the config's defaults give Llama's modules, names
and logits.

Shapes: B rows, T new positions, H hidden size, R loops.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache, DynamicCache, initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaModel,
    LlamaPreTrainedModel,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .cache_argument import CACHE, accepts_cache
from .configuration_looped import LoopedLlamaConfig
from .exit_gate import LoopExits, exit_distribution, expected_exit_loss
from .loop_lora import check_loop_count, init_loop_lora
from .looped_layer import LoopAdapter, LoopedLlamaAttention, LoopedLlamaDecoderLayer, LoopSlots
from .number_checks import FiniteWeightsMixin


@dataclass
class LoopedModelOutput(BaseModelOutputWithPast):
    """
    [`~transformers.modeling_outputs.BaseModelOutputWithPast`] with `loop_states`, of each loop `(B, T, H)` behind the
    final norm, and `exit_probabilities` `(B, T, R)`, if asked for by `output_loops=True`.
    """

    loop_states: tuple[torch.Tensor, ...] | None = None
    exit_probabilities: torch.Tensor | None = None


class LoopedLlamaPreTrainedModel(FiniteWeightsMixin, LlamaPreTrainedModel):
    """Weights, loading and what transformers may do with the model."""

    config: LoopedLlamaConfig
    _no_split_modules = ["LoopedLlamaDecoderLayer"]
    _can_record_outputs = {"hidden_states": LoopedLlamaDecoderLayer, "attentions": LoopedLlamaAttention}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, LoopAdapter):
            init.eye_(module.weight)
        init_loop_lora(module, self.config.initializer_range)


class LoopedLlamaModel(LoopedLlamaPreTrainedModel, LlamaModel):
    """The decoder without head."""

    def __init__(self, config: LoopedLlamaConfig):
        # Not LlamaModel's, which would build and initialize a whole Llama first
        LlamaPreTrainedModel.__init__(self, config)
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(
            [LoopedLlamaDecoderLayer(config, layer_idx) for layer_idx in range(config.num_unique_layers)]
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config=config)
        if config.exit_gate:
            self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        if config.loop_adapter:
            self.loop_adapter = LoopAdapter(config.hidden_size)
        self.gradient_checkpointing = False
        self.set_num_loops(config.num_loops)
        self.post_init()

    def set_num_loops(self, num_loops: int) -> None:
        """Run the blocks another number of times from the next pass on; caches that are filled do not fit any more."""
        check_loop_count(self.layers, num_loops)
        self.config.set_num_loops(num_loops)
        self._calls, self._num_loops = self.config.layer_calls(), num_loops

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
        output_loops: bool = False,
        **kwargs,
    ) -> LoopedModelOutput:
        r"""
        Differs from Llama's in `output_loops`, for a model with an exit gate: all loops run, and the output has
        `loop_states` and `exit_probabilities`.
        """
        self._check_inputs(input_ids, inputs_embeds, past_key_values, output_loops)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
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
        inputs = {
            "attention_mask": causal_mask,
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids=position_ids),
            "position_ids": position_ids,
            "use_cache": use_cache,
            **kwargs,
        }
        exits = None if output_loops else self._exits(attention_mask, inputs_embeds.shape[1])
        loop_states: list[torch.Tensor] | None = [] if output_loops else None
        looping = None
        if self.config.loop_token_id is not None:  # by its embedding, since thinking models give `inputs_embeds`, too
            token = torch.tensor(self.config.loop_token_id, device=inputs_embeds.device)
            looping = (inputs_embeds == self.embed_tokens(token)).all(-1, keepdim=True)
        states = self._run(inputs_embeds, past_key_values, exits, loop_states, looping, inputs)
        states = self.norm(states)
        if loop_states is None:
            return LoopedModelOutput(last_hidden_state=states, **{CACHE: past_key_values})
        loop_states.append(states)
        return LoopedModelOutput(
            last_hidden_state=states,
            loop_states=tuple(loop_states),
            exit_probabilities=exit_distribution([self.early_exit_gate(each)[..., 0] for each in loop_states]),
            **{CACHE: past_key_values},
        )

    def _run(self, states, cache, exits, loop_states, looping, inputs):
        """States before the final norm; those of loops that others follow are added behind it to `loop_states`."""
        before = entry = states
        last = self._num_loops - 1
        step = 1 / self._num_loops
        # Read anew each time: `assistant_early_exit` lowers it for the draft
        calls = self._calls[: self.config.num_hidden_layers]
        for slot, call in enumerate(calls):
            if call.begins and not call.loop:
                entry = states
                if self.config.loop_adapter:
                    states = self.loop_adapter(entry, self._start(entry))
            elif call.begins and self.config.loop_adapter:
                states = self.loop_adapter(entry, states)
            elif call.begins and self.config.loop_injection:
                states = self._inject(states, entry, exits, looping)
            if call.begins:
                before = states
            more = {"loop": call.loop}
            if exits is not None and call.loop:
                more |= {"frozen": exits.frozen, "only_cache": exits.all_left}
            damped = self.config.loop_damping and call.ends and last
            offset = slot - call.layer
            slots = cache if cache is None or not offset else LoopSlots(cache, offset)
            # By position, since what a checkpointed layer gets by name has no gradient in its reentrant variant
            states = self.layers[call.layer](
                states, before if damped else None, step, **more, **{CACHE: slots}, **inputs
            )
            if call.ends and call.loop < last and slot < len(calls) - 1:
                states = self._between_loops(states, exits, loop_states)
        return states if exits is None else exits.last_states(states)

    def _start(self, entry):
        zeros = torch.zeros_like(entry)
        return zeros.normal_(std=self.config.loop_start_noise) if self.training else zeros

    def _inject(self, states, entry, exits, looping):
        if looping is not None:
            return torch.where(looping, states + entry, entry)
        if exits is None or exits.frozen is None:
            return states + entry
        return states if exits.all_left else torch.where(exits.frozen, states, states + entry)

    def _between_loops(self, states, exits, loop_states):
        if exits is None and loop_states is None:
            return self.norm(states) if self.config.loop_norm else states
        if exits is not None and exits.all_left:
            return states
        normed = self.norm(states)
        onward = normed if self.config.loop_norm else states
        if loop_states is not None:
            loop_states.append(normed)
            return onward
        frozen = exits.frozen
        exits.after_loop(states, self.early_exit_gate(normed)[..., 0])
        return onward if frozen is None else torch.where(frozen, states, onward)

    def _exits(self, attention_mask, count):
        """Of this pass, or `None` where all tokens run all loops; a draft of `assistant_early_exit` has none."""
        is_draft = self.config.num_hidden_layers < len(self._calls)
        if not self.config.exit_gate or self.config.early_exit_threshold >= 1 or is_draft:
            return None
        is_mask = attention_mask is not None and attention_mask.dim() == 2
        return LoopExits(self.config, attention_mask[:, -count:] if is_mask else None)

    def _check_inputs(self, input_ids, inputs_embeds, cache, output_loops):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of `input_ids` and `inputs_embeds`.")
        if self.config.num_loops != self._num_loops:
            raise ValueError(
                f"`config.num_loops` was set to {self.config.num_loops} in a model of {self._num_loops} loops. Call "
                f"`model.set_num_loops({self.config.num_loops})`, which also counts the slots of the cache."
            )
        if cache is not None and not isinstance(cache, Cache):
            raise ValueError(
                f"A looped model needs a `Cache` with a slot for each loop and layer, got {type(cache).__name__}. "
                "Continuous batching (`generate_batch`) has one for each layer only: call `generate`."
            )
        if output_loops and not self.config.exit_gate:
            raise ValueError("`output_loops=True` needs `exit_gate=True`.")


class LoopedLlamaForCausalLM(LoopedLlamaPreTrainedModel, LlamaForCausalLM):
    """
    The decoder with a language-modeling head.

    Example:

    ```python
    >>> from hf_evidenceflow import LoopedLlamaConfig, LoopedLlamaForCausalLM

    >>> model = LoopedLlamaForCausalLM(LoopedLlamaConfig(num_unique_layers=8, loop_blocks=[[2, 6]], num_loops=3))
    ```
    """

    def __init__(self, config: LoopedLlamaConfig):
        LlamaPreTrainedModel.__init__(self, config)
        self.model = LoopedLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def set_num_loops(self, num_loops: int) -> None:
        """As [`LoopedLlamaModel.set_num_loops`]."""
        self.model.set_num_loops(num_loops)

    def add_exit_gate(self) -> None:
        """A fresh gate, open by half after each loop, for a checkpoint that has none."""
        base = self.model
        base.config.exit_gate = True
        base.config.check_loops()
        gate = nn.Linear(base.config.hidden_size, 1, device=self.device, dtype=self.dtype)
        init.zeros_(gate.weight)
        init.zeros_(gate.bias)
        base.early_exit_gate = gate

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
    ) -> CausalLMOutputWithPast:
        """
        As Llama's. In training mode a model with an exit gate runs all loops and has the loss of
        [`expected_exit_loss`]; its logits are those of the last loop.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        inputs |= {"inputs_embeds": inputs_embeds, "use_cache": use_cache, CACHE: past_key_values, **kwargs}
        if not (self.config.exit_gate and self.training and labels is not None):
            return super().forward(labels=labels, logits_to_keep=logits_to_keep, **inputs)
        outputs = self.model(output_loops=True, **inputs)
        logits = [self.lm_head(states) for states in outputs.loop_states]
        loss = expected_exit_loss(
            logits,
            outputs.exit_probabilities,
            labels,
            self.config.exit_entropy_coef,
            kwargs.get("num_items_in_batch"),
        )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits[-1],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: outputs.get(CACHE)},
        )
