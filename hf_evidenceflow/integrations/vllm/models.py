"""vLLM's own decoders with the thinking modules: forward pass, attention and loading of weights stay vLLM's.

Shapes: R requests of a step, H hidden size.
"""

import torch
from transformers import AutoTokenizer
from vllm.config import VllmConfig
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from ...models.thinking.answer_marker import MarkerAutomaton
from ...models.thinking.count_automaton import CountAutomaton
from ...models.thinking.thinking_residual import (
    ThinkingGate,
    ThinkingLambda,
    ThinkingProjection,
    mix_thinking_state,
    normalize_state,
)
from .support import check_vllm, refuse_method, refuse_settings


class ThinkingMixin:
    """
    Adds thinking to a causal LM of vLLM; put before its class.

    Neutral setting: with `thinking_mode="none"` the engine is vLLM's, with four modules that nothing reads.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        check_vllm()
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        size = self.config.hidden_size
        self.model.thinking_residual_gate_r = ThinkingGate(size)
        self.model.thinking_residual_gate_i = ThinkingGate(size)
        self.model.thinking_residual_Lambda = ThinkingLambda(size, self.config.thinking_residual_c)
        self.model.thinking_projection = ThinkingProjection(size, self.config.thinking_projection_layers)
        self.last_rows = None  # [R, H], behind the final norm
        if self.config.thinking_mode != "none":
            refuse_method(self.config)
            refuse_settings(vllm_config)
            # As a buffer: sleep at level 2 brings back weights and named buffers, and nothing else of a model
            self.register_buffer("thinking_marker", self._marker_table(vllm_config), persistent=False)

    def _marker_table(self, vllm_config):
        if not self.config.ends_by_marker:
            return None
        model = vllm_config.model_config
        tokenizer = AutoTokenizer.from_pretrained(
            model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
        )
        with torch.device("cpu"):
            table = MarkerAutomaton.for_tokenizer(
                tokenizer, self.config.thinking_answer_start, torch.device("cpu")
            ).table
        return table.to(vllm_config.device_config.device)

    @property
    def thinking_end(self) -> MarkerAutomaton | CountAutomaton | None:
        """The automaton that ends the thinking of a completion."""
        if self.config.thinking_count is not None:
            return CountAutomaton(self.config.thinking_count)
        return None if self.thinking_marker is None else MarkerAutomaton(self.thinking_marker)

    def get_model_state_cls(self):
        """vLLM's hook for what a request carries from step to step."""
        if self.config.thinking_mode == "none":
            from vllm.v1.worker.gpu.model_states.default import DefaultModelState

            return DefaultModelState
        from .model_state import ThinkingModelState

        return ThinkingModelState

    def compute_logits(self, hidden_states):
        self.last_rows = hidden_states
        return super().compute_logits(hidden_states)

    def fuse(self, embeds: torch.Tensor, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """
        Token embeddings `(R, H)` with recorded states `(R, H)` mixed into them where the mask `(R,)` is set, in at
        least fp32: [`ThinkingModelMixin.fuse`] for rows.
        """
        rows = embeds.to(torch.promote_types(embeds.dtype, torch.float32))
        fused = states.to(rows)
        method = self.config.thinking_method
        if method.source == "projection":
            fused = normalize_state(self.model.thinking_projection(fused), rows, self.config.thinking_projection_norm)
        if method.mixer == "gated":
            r, i = self.model.thinking_residual_gate_r(rows), self.model.thinking_residual_gate_i(rows)
            fused, _ = mix_thinking_state(rows, fused, r, i, self.model.thinking_residual_Lambda())
        return torch.where(mask[:, None], fused.to(embeds.dtype), embeds)


class ThinkingQwen2ForCausalLM(ThinkingMixin, Qwen2ForCausalLM):
    """Qwen2 that thinks."""


class ThinkingLlamaForCausalLM(ThinkingMixin, LlamaForCausalLM):
    """Llama that thinks."""


class ThinkingQwen3ForCausalLM(ThinkingMixin, Qwen3ForCausalLM):
    """Qwen3 that thinks."""
