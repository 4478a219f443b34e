"""Qwen3 with hybrid latent reasoning: only the names differ from one family to the next."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from .configuration_thinking import ThinkingConfigMixin
from .generation_thinking import ThinkingGenerationMixin
from .modeling_thinking import ThinkingCausalLMMixin, ThinkingModelMixin


@strict
class ThinkingQwen3Config(ThinkingConfigMixin, Qwen3Config):
    model_type = "thinking_qwen3"


class ThinkingQwen3Model(ThinkingModelMixin, Qwen3Model):
    config: ThinkingQwen3Config


class ThinkingQwen3ForCausalLM(ThinkingCausalLMMixin, ThinkingGenerationMixin, Qwen3ForCausalLM):
    config: ThinkingQwen3Config
    thinking_model_class = ThinkingQwen3Model
