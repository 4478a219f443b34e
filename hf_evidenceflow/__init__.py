"""Latent reasoning and layer-wise supervision for any Hugging Face causal LM, on stock transformers and TRL.

Importing the package registers its model types with transformers' Auto classes; everything else is loaded on first
use.
"""

import importlib

from .dependencies import check_versions
from .quiet_imports import quiet_imports
from .version import __version__


check_versions()

with quiet_imports():  # below the check, as transformers of another version may fail to import
    from .registration import register_models


_EXPORTS = {
    "supervision.evidence_flow": ["EvidenceFlow", "evidence_flow"],
    "supervision.arguments": ["EvidenceFlowArguments"],
    "callbacks.evidence_flow_callback": ["EvidenceFlowCallback"],
    "supervision.config": ["EvidenceFlowConfig"],
    "callbacks.log_file": ["LogFileCallback"],
    "callbacks.router_statistics_callback": ["RouterStatisticsCallback"],
    "probe.probe": ["EvidenceProbe", "ProbeResult"],
    "models.router_statistics": ["RouterStatistics"],
    "losses.next_token": ["NextTokenTargets"],
    "models.ablation.configuration_ablation": ["AblationLlamaConfig"],
    "models.ablation.modeling_ablation": ["AblationLlamaForCausalLM", "AblationLlamaModel"],
    "models.auto_thinking": ["load_thinking_model"],
    "models.base_export": ["export_base_model"],
    "models.crosslayer.configuration_crosslayer": ["CrossLayerLlamaConfig"],
    "models.crosslayer.extra_parameters": ["extra_parameters", "no_decay_names"],
    "models.crosslayer.modeling_crosslayer": ["CrossLayerLlamaForCausalLM", "CrossLayerLlamaModel"],
    "models.decoder": ["DecoderParts", "decoder_parts", "record_layer_states"],
    "models.hub": ["hub_code"],
    "models.thinking.answer_marker": ["MarkerAutomaton"],
    "models.thinking.generation_thinking": ["GenerateThinkingOutput", "ThinkingRollout", "collect_thinking"],
    "models.thinking.modeling_thinking_llama": [
        "ThinkingLlamaConfig",
        "ThinkingLlamaForCausalLM",
        "ThinkingLlamaModel",
    ],
    "models.thinking.modeling_thinking_qwen2": [
        "ThinkingQwen2Config",
        "ThinkingQwen2ForCausalLM",
        "ThinkingQwen2Model",
    ],
    "models.thinking.modeling_thinking_qwen3": [
        "ThinkingQwen3Config",
        "ThinkingQwen3ForCausalLM",
        "ThinkingQwen3Model",
    ],
    "models.tinyseek.configuration_tinyseek": ["TinySeekConfig"],
    "models.tinyseek.convert_tinyseek": ["convert_original_checkpoint"],
    "models.tinyseek.cost_report": ["CostReport", "cost_report"],
    "models.tinyseek.modeling_tinyseek": ["TinySeekForCausalLM", "TinySeekModel"],
    "rollouts.engine": ["RolloutEngine"],
    "run_folder.atomic_checkpoint": ["AtomicCheckpointMixin"],
    "run_folder.resumable_trainer": ["ResumableTrainerMixin"],
    "run_folder.training_run": ["training_run"],
    "trainers.hrpo_config": ["HRPOConfig"],
    "trainers.hrpo_trainer": ["HRPOTrainer"],
    "trainers.ppo_config": ["PPOConfig"],
    "trainers.ppo_trainer": ["PPOTrainer"],
    "trainers.pretraining_config": ["PretrainingConfig"],
    "trainers.pretraining_trainer": ["PretrainingTrainer"],
    "trainers.parameter_groups": ["ParameterGroupSpec", "ParameterGroupWatch"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", "register_models", *sorted(_MODULE_OF)]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))


register_models()
