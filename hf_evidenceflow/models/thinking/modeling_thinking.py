"""Hybrid latent reasoning on top of a transformers base model: the forward pass with fused inputs, and initialization.

Source: Yue et al. 2025 (arXiv 2505.18454); the learnable projection is this project's own variant of the paper's
state.

Shapes: B rows, T tokens, C completion tokens, H hidden size.
"""

import glob
import json
import os
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import MoeModelOutputWithPast

from .cache_argument import CACHE, accepts_cache
from .latent_forward import latent_forward
from .number_checks import FiniteWeightsMixin, check_numbers
from .thinking_residual import (
    THINKING_MODULES,
    ThinkingGate,
    ThinkingHead,
    ThinkingLambda,
    ThinkingProjection,
    mix_thinking_state,
    normalize_state,
)
from .thinking_sources import StateSource, kept_alignment


# Where the files are
_LOCATION = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


class ThinkingCheckpointMixin(FiniteWeightsMixin):
    """Lets `from_pretrained` give fresh thinking modules to a plain checkpoint, never to one that lost its own."""

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        plain = cls.__bases__[-1]
        if not issubclass(plain, PreTrainedModel):
            return
        cls._keep_in_fp32_modules_strict = [*(plain._keep_in_fp32_modules_strict or ()), *THINKING_MODULES]
        # Checkpoints on the Hub hold each expert of a mixture by itself, for example
        ours, theirs = cls.config_class.model_type, plain.config_class.model_type
        for key, source in ((cls.__name__, plain.__name__), (ours, theirs)):
            if (conversions := get_checkpoint_conversion_mapping(source)) is not None:
                register_checkpoint_conversion_mapping(key, conversions, overwrite=True)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info=False, **kwargs):
        """Differs from PreTrainedModel in refusing a thinking checkpoint that lacks thinking weights."""
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        thinking = {name for name, _ in model.named_parameters() if any(part in name for part in THINKING_MODULES)}
        lost = thinking & set(info["missing_keys"])
        saved = _saved_config(pretrained_model_name_or_path, kwargs) if lost else {}
        if not saved.get("thinking_has_head"):
            lost = {name for name in lost if "thinking_head" not in name}
            thinking = {name for name in thinking if "thinking_head" not in name}
        if lost and (lost != thinking or saved.get("model_type", "").startswith("thinking_")):
            raise ValueError(
                f"The thinking checkpoint `{pretrained_model_name_or_path}` lacks the weight `{min(lost)}`"
                + (f" and {len(lost) - 1} more" if len(lost) > 1 else "")
                + ", which would be made anew at random. Copy or download the checkpoint again, and load it with the "
                "thinking fields that it was trained with."
            )
        return (model, info) if output_loading_info else model


def _saved_config(path, kwargs) -> dict:
    location = {name: kwargs[name] for name in _LOCATION if name in kwargs}
    return PreTrainedConfig.get_config_dict(path, **location)[0]


@dataclass
class _LastStates(MoeModelOutputWithPast):
    shared_kv_states: None = None  # Gemma 4


class ThinkingModelMixin(ThinkingCheckpointMixin):
    """
    Adds the thinking modules and the fusion of thinking states to a decoder; put before the transformers base model.

    Neutral setting: with `thinking_mode="none"`, or without a `thinking_mask`, the output is bit-equal to the base
    model's.
    """

    def __init__(self, config):
        check_numbers(config)
        super().__init__(config)
        self.add_thinking_modules()
        self.post_init()

    @property
    def thinking_embedding_scale(self) -> float:
        """What the embedding module multiplies the rows of its matrix by (Gemma), in the dtype of the matrix."""
        embeddings = self.get_input_embeddings()
        return torch.tensor(getattr(embeddings, "scalar_embed_scale", 1.0), dtype=embeddings.weight.dtype).item()

    @property
    def thinking_input_scale(self) -> float:
        """What the model multiplies its inputs by before its layers read them (Granite)."""
        return getattr(self.config, "embedding_multiplier", 1.0)

    def add_thinking_modules(self):
        """Add the thinking modules that the config asks for, without initial values."""
        size = self.config.hidden_size
        self.thinking_residual_gate_r = ThinkingGate(size)
        self.thinking_residual_gate_i = ThinkingGate(size)
        self.thinking_residual_Lambda = ThinkingLambda(size, self.config.thinking_residual_c)
        self.thinking_projection = ThinkingProjection(size, self.config.thinking_projection_layers)
        if self.config.thinking_method.schedule == "head":
            self.config.thinking_has_head = True  # whatever mode it is saved and loaded in
        if self.config.thinking_has_head:
            self.thinking_head = ThinkingHead(size)

    def _init_weights(self, module):
        if isinstance(module, (ThinkingGate, ThinkingHead, ThinkingLambda, ThinkingProjection)):
            module.init_weights(self.config)
        else:
            super()._init_weights(module)

    def thinking_state(self, states: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        """
        The state `s` that is mixed in, from the recorded states.

        Args:
            states (`torch.Tensor` of shape `(B, C, H)`): recorded states, see [`ThinkingRollout`].
            embeds (`torch.Tensor` of shape `(B, C, H)`): token embeddings, fp32 (or fp64).

        Returns:
            `torch.Tensor` of shape `(B, C, H)`, in the dtype of `embeds`.
        """
        states = states.to(embeds)
        if self.config.thinking_method.reads_weights:
            return states * (self.thinking_embedding_scale * self.thinking_input_scale)
        if self.config.thinking_method.source != "projection":
            return states
        state = normalize_state(self.thinking_projection(states), embeds, self.config.thinking_projection_norm)
        # In a rollout there are no gradients: it stays exact under dropout
        return F.dropout(
            state, self.config.thinking_projection_dropout, training=self.training and torch.is_grad_enabled()
        )

    def fuse(self, embeds: torch.Tensor, states: torch.Tensor, mask: torch.Tensor):
        """
        Fuse thinking states into the last C token embeddings where the mask is set, at the scale at which the layers
        read them; computed in at least fp32, autocast or not.

        Args:
            embeds (`torch.Tensor` of shape `(B, T, H)`): token embeddings.
            states (`torch.Tensor` of shape `(B, C, H)`): recorded states, right-aligned to the sequence.
            mask (`torch.Tensor` of shape `(B, C)`): boolean.

        Returns:
            `tuple`: fused embeddings `[B, T, H]` in the dtype of `embeds`, and the tensors `a`, `r` of shape `[B, C,
            H]`. Where the state takes the place of the embedding, as in mode `soft`, both are 0; where it is added,
            `a` is 1.
        """
        if mask.shape != states.shape[:2] or mask.shape[0] != embeds.shape[0] or mask.shape[1] > embeds.shape[1]:
            raise ValueError(
                "`thinking_states` must be [B, C, *] and `thinking_mask` [B, C] with C at most the sequence length, "
                f"got {tuple(states.shape)} and {tuple(mask.shape)} for embeddings of shape {tuple(embeds.shape)}."
            )
        count = mask.shape[1]
        with torch.autocast(device_type=embeds.device.type, enabled=False):
            tail = embeds[:, -count:].to(torch.promote_types(embeds.dtype, torch.float32)) * self.thinking_input_scale
            if self.config.thinking_method.mixer in ("replace", "add"):
                fused, a, r = self.thinking_state(states, tail), torch.zeros_like(tail), torch.zeros_like(tail)
                if self.config.thinking_method.mixer == "add":
                    fused, a = fused + tail, torch.ones_like(tail)
            else:
                r = self.thinking_residual_gate_r(tail)
                i = self.thinking_residual_gate_i(tail)
                fused, a = mix_thinking_state(
                    tail, self.thinking_state(states, tail), r, i, self.thinking_residual_Lambda()
                )
        fused = (fused / self.thinking_input_scale).to(embeds.dtype)  # [B, C, H]
        fused = torch.where(mask.to(embeds.device, torch.bool)[..., None], fused, embeds[:, -count:])
        if count < embeds.shape[1]:
            fused = torch.cat([embeds[:, :-count], fused], dim=1)
        return fused, a, r

    @accepts_cache
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        thinking_states=None,
        thinking_mask=None,
        thinking_recorder=None,
        thinking_output=None,
        **kwargs,
    ):
        r"""
        Args:
            thinking_states (`torch.Tensor` of shape `(B, C, H)`, *optional*):
                Recorded states of the last C tokens (right-aligned); needed where `thinking_mask` is given.
            thinking_mask (`torch.Tensor` of shape `(B, C)`, *optional*):
                `True` (or 1) where a token's input is fused with its state. Without it nothing is fused.
            thinking_recorder ([`ThinkingRecorder`], *optional*):
                Receives the last hidden state, for generation.
            thinking_output (`torch.Tensor` of shape `(B, T, H)`, *optional*):
                Last hidden states, which are returned as they are: a causal LM then computes its logits only.
        """
        if thinking_output is not None:
            return _LastStates(last_hidden_state=thinking_output)
        stats = None
        if thinking_mask is not None:
            self.config.check_thinking()
        if thinking_mask is not None and self.config.thinking_method.fuses:
            if thinking_states is None:
                raise ValueError("`thinking_mask` needs `thinking_states` of shape [B, C, H]; got None.")
            if inputs_embeds is None:
                if getattr(self.config, "hidden_size_per_layer_input", None):  # Gemma: each layer reads the tokens
                    kwargs["per_layer_inputs"] = self.get_per_layer_inputs(input_ids)
                inputs_embeds, input_ids = self.get_input_embeddings()(input_ids), None
            inputs_embeds, a, r = self.fuse(inputs_embeds, thinking_states, thinking_mask)
            if thinking_recorder is not None:
                a, r = a[:, -1], r[:, -1]
                stats = torch.stack([a.mean(-1), r.mean(-1), (1 - a * a).clamp(min=0).sqrt().mean(-1)], dim=-1)
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **{CACHE: past_key_values},
            **kwargs,
        )
        if thinking_recorder is not None:
            thinking_recorder.hidden = outputs[0][:, -1]
            thinking_recorder.stats = stats
        return outputs


class ThinkingCausalLMMixin(ThinkingCheckpointMixin):
    """Puts a thinking base model (class attribute `thinking_model_class`) into a transformers causal LM."""

    thinking_model_class: type | None = None
    on_adapter = None  # set by the package: called with the config of an adapter and the model's

    def __init__(self, config):
        check_numbers(config)
        super().__init__(config)
        self.config.architectures = [type(self).__name__]  # a plain checkpoint's config names the plain class
        self.add_thinking_modules()
        self.post_init()

    def add_thinking_modules(self):
        """Put a thinking base model, without initial values, around what the family's constructor has built."""
        plain, cls = self.base_model, self.thinking_model_class
        if not issubclass(cls, type(plain)):
            raise ValueError(
                f"{type(self).__name__} needs a base model of type {cls.__bases__[-1].__name__}, got "
                f"{type(plain).__name__}."
            )
        base = cls.__new__(cls)
        PreTrainedModel.__init__(base, plain.config)  # not the family's, which would build everything again
        vars(base).update(vars(plain))
        base.add_thinking_modules()
        setattr(self, self.base_model_prefix, base)

    def read_out(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits `(B, T, V)` of last hidden states `(B, T, H)`, by the family's own head: some scale or cap them."""
        return super().forward(inputs_embeds=hidden, thinking_output=hidden, use_cache=False).logits

    def thinking_source(self, approximate: bool = False) -> StateSource:
        """The [`StateSource`] of the config, over the weights as they are; `approximate` as there."""
        config = self.config
        method, embedding, aligned = config.thinking_method, None, None
        if method.reads_weights:
            module = self.get_input_embeddings()
            embedding = whole_weight(module.weight)
        if method.source in ("aligned", "fusion"):
            aligned = kept_alignment(module, whole_weight(self.get_output_embeddings().weight), embedding)
        return StateSource(
            method,
            embedding,
            aligned,
            config.averaged_tokens,
            config.thinking_temperature,
            config.thinking_fusion,
            approximate,
        )

    def thinking_noise_scale(self) -> torch.Tensor:
        """Standard deviation of Gaussian noise: `thinking_sigma` times the root mean square of the embeddings."""
        weight = whole_weight(self.get_input_embeddings().weight).detach()
        return self.config.thinking_sigma * weight.float().square().mean().sqrt()

    @accepts_cache
    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        latent_mask=None,
        latent_targets=None,
        latent_options=None,
        **kwargs,
    ):
        r"""
        Args:
            latent_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
                `True` at positions that think by themselves: the pass is [`latent_forward`], which says more.
            latent_targets, latent_options:
                `targets` and `options` of [`latent_forward`].
        """
        if latent_mask is not None:
            return latent_forward(
                self, input_ids, attention_mask, latent_mask, latent_targets, latent_options, logits_to_keep, **kwargs
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **{CACHE: past_key_values},
            **kwargs,
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Differs from PreTrainedModel in the folder of an adapter with a config, whose model is its base."""
        folder = pretrained_model_name_or_path
        base = _base_of_adapter(folder)
        if base is None:
            return super().from_pretrained(folder, *args, **kwargs)
        if not isinstance(kwargs.get("config"), cls.config_class):
            names = [name for name in kwargs if name.startswith("thinking_")]
            kwargs["config"] = cls.config_class.from_pretrained(folder, **{name: kwargs.pop(name) for name in names})
        kwargs["adapter_kwargs"] = {**(kwargs.get("adapter_kwargs") or {}), "_adapter_model_path": str(folder)}
        return super().from_pretrained(base, *args, **kwargs)

    @property
    def peft_config(self):
        """Configs of the adapters by name, as PEFT and transformers set them."""
        return _attribute(self, "peft_config")

    @peft_config.setter
    def peft_config(self, configs):
        self.__dict__["peft_config"] = configs
        if self.on_adapter is not None:
            for config in configs.values():
                self.on_adapter(config, self.config)

    @peft_config.deleter
    def peft_config(self):
        _attribute(self, "peft_config")
        del self.__dict__["peft_config"]


def whole_weight(weight: torch.Tensor) -> torch.Tensor:
    """A weight that may be sharded (FSDP2), gathered."""
    return weight.full_tensor() if isinstance(weight, DTensor) else weight


def _attribute(model, name):
    if name not in model.__dict__:
        raise AttributeError(f"{type(model).__name__!r} object has no attribute {name!r}")
    return model.__dict__[name]


def _base_of_adapter(folder):
    """Base of the adapter in a local folder that holds no model of its own."""
    path = os.path.join(folder or "", "adapter_config.json")
    if (
        not folder
        or not os.path.isfile(path)
        or glob.glob(os.path.join(glob.escape(str(folder)), "model*.safetensors"))
    ):
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)["base_model_name_or_path"]
