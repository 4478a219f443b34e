"""Qwen2 with hybrid latent reasoning: only the names differ from one family to the next."""

from huggingface_hub.dataclasses import strict
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from .configuration_thinking import ThinkingConfigMixin
from .generation_thinking import ThinkingGenerationMixin
from .modeling_thinking import ThinkingCausalLMMixin, ThinkingModelMixin


@strict
class ThinkingQwen2Config(ThinkingConfigMixin, Qwen2Config):
    model_type = "thinking_qwen2"


class ThinkingQwen2Model(ThinkingModelMixin, Qwen2Model):
    config: ThinkingQwen2Config


class ThinkingQwen2ForCausalLM(ThinkingCausalLMMixin, ThinkingGenerationMixin, Qwen2ForCausalLM):
    config: ThinkingQwen2Config
    thinking_model_class = ThinkingQwen2Model
