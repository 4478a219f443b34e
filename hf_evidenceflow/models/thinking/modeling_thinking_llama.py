"""Llama with hybrid latent reasoning: only the names differ from one family to the next."""

from huggingface_hub.dataclasses import strict
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from .configuration_thinking import ThinkingConfigMixin
from .generation_thinking import ThinkingGenerationMixin
from .modeling_thinking import ThinkingCausalLMMixin, ThinkingModelMixin


@strict
class ThinkingLlamaConfig(ThinkingConfigMixin, LlamaConfig):
    model_type = "thinking_llama"


class ThinkingLlamaModel(ThinkingModelMixin, LlamaModel):
    config: ThinkingLlamaConfig


class ThinkingLlamaForCausalLM(ThinkingCausalLMMixin, ThinkingGenerationMixin, LlamaForCausalLM):
    config: ThinkingLlamaConfig
    thinking_model_class = ThinkingLlamaModel
