"""Thinking models on vLLM, for rollouts and for serving, through vLLM's public plugin hooks; vLLM stays unchanged.

vLLM calls [`register`] in each of its processes (entry point `vllm.general_plugins`). Nothing else is needed to serve:
`vllm serve FOLDER_OF_A_THINKING_CHECKPOINT`.
"""

MODELS = ("ThinkingQwen2ForCausalLM", "ThinkingLlamaForCausalLM", "ThinkingQwen3ForCausalLM")


def register() -> None:
    """Tell vLLM the thinking classes and what their engines need. Calling it again changes nothing."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from .engine_config import ThinkingEngineConfig

    known = ModelRegistry.get_supported_archs()
    for name in MODELS:
        if name not in known:
            ModelRegistry.register_model(name, f"{__name__}.models:{name}")
        MODELS_CONFIG_MAP[name] = ThinkingEngineConfig
