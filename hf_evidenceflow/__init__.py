"""Latent reasoning and layer-wise supervision for any Hugging Face causal LM, on stock transformers and TRL.

Importing the package registers its model types with transformers' Auto classes; everything else is loaded on first
use.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .dependencies import check_versions
from .first_line import say_loading
from .quiet_imports import quiet_imports
from .version import __version__


if TYPE_CHECKING:  # for editors and type checkers, the names of the table below
    from .callbacks.evidence_flow_callback import EvidenceFlowCallback as EvidenceFlowCallback
    from .callbacks.layer_dropout_callback import LayerDropoutCallback as LayerDropoutCallback
    from .callbacks.log_file import LogFileCallback as LogFileCallback
    from .callbacks.parameter_group_watch import ParameterGroupWatch as ParameterGroupWatch
    from .callbacks.router_statistics_callback import RouterStatisticsCallback as RouterStatisticsCallback
    from .data.thought_rows import load_thought_rows as load_thought_rows
    from .data.thought_targets import (
        thought_targets_from_traces as thought_targets_from_traces,
        traces_from_samples as traces_from_samples,
    )
    from .losses.next_token import NextTokenTargets as NextTokenTargets
    from .models.ablation.configuration_ablation import AblationLlamaConfig as AblationLlamaConfig
    from .models.ablation.modeling_ablation import (
        AblationLlamaForCausalLM as AblationLlamaForCausalLM,
        AblationLlamaModel as AblationLlamaModel,
    )
    from .models.auto_looped import load_looped_model as load_looped_model
    from .models.auto_thinking import load_thinking_model as load_thinking_model
    from .models.base_export import export_base_model as export_base_model
    from .models.crosslayer.configuration_crosslayer import CrossLayerLlamaConfig as CrossLayerLlamaConfig
    from .models.crosslayer.extra_parameters import extra_parameters as extra_parameters
    from .models.crosslayer.modeling_crosslayer import (
        CrossLayerLlamaForCausalLM as CrossLayerLlamaForCausalLM,
        CrossLayerLlamaModel as CrossLayerLlamaModel,
    )
    from .models.declared import no_decay_names as no_decay_names
    from .models.decoder import (
        DecoderParts as DecoderParts,
        decoder_parts as decoder_parts,
        record_layer_states as record_layer_states,
    )
    from .models.hub import hub_code as hub_code
    from .models.looped.configuration_looped import LoopedLlamaConfig as LoopedLlamaConfig
    from .models.looped.modeling_looped import (
        LoopedLlamaForCausalLM as LoopedLlamaForCausalLM,
        LoopedLlamaModel as LoopedLlamaModel,
    )
    from .models.router_statistics import RouterStatistics as RouterStatistics
    from .models.thinking.answer_marker import MarkerAutomaton as MarkerAutomaton
    from .models.thinking.families import (
        ThinkingLlamaConfig as ThinkingLlamaConfig,
        ThinkingLlamaForCausalLM as ThinkingLlamaForCausalLM,
        ThinkingLlamaModel as ThinkingLlamaModel,
        ThinkingQwen2Config as ThinkingQwen2Config,
        ThinkingQwen2ForCausalLM as ThinkingQwen2ForCausalLM,
        ThinkingQwen2Model as ThinkingQwen2Model,
        ThinkingQwen3Config as ThinkingQwen3Config,
        ThinkingQwen3ForCausalLM as ThinkingQwen3ForCausalLM,
        ThinkingQwen3Model as ThinkingQwen3Model,
    )
    from .models.thinking.intervention import ThinkingIntervention as ThinkingIntervention
    from .models.thinking.thinking_rollout import (
        GenerateThinkingOutput as GenerateThinkingOutput,
        ThinkingRollout as ThinkingRollout,
        collect_thinking as collect_thinking,
    )
    from .models.tinyseek.configuration_tinyseek import TinySeekConfig as TinySeekConfig
    from .models.tinyseek.convert_tinyseek import convert_original_checkpoint as convert_original_checkpoint
    from .models.tinyseek.cost_report import CostReport as CostReport, cost_report as cost_report
    from .models.tinyseek.modeling_tinyseek import (
        TinySeekForCausalLM as TinySeekForCausalLM,
        TinySeekModel as TinySeekModel,
    )
    from .probe.probe import EvidenceProbe as EvidenceProbe, ProbeResult as ProbeResult
    from .recipes.command_line.evidence_arguments import EvidenceFlowArguments as EvidenceFlowArguments
    from .registration import register_models as register_models
    from .rollouts.engine import RolloutEngine as RolloutEngine
    from .run_folder.atomic_checkpoint import AtomicCheckpointMixin as AtomicCheckpointMixin
    from .run_folder.resumable_trainer import ResumableTrainerMixin as ResumableTrainerMixin
    from .run_folder.training_run import training_run as training_run
    from .supervision.config import EvidenceFlowConfig as EvidenceFlowConfig
    from .supervision.evidence_flow import EvidenceFlow as EvidenceFlow, evidence_flow as evidence_flow
    from .trainers.hrpo_config import HRPOConfig as HRPOConfig
    from .trainers.hrpo_trainer import HRPOTrainer as HRPOTrainer
    from .trainers.latent_sft_config import LatentSFTConfig as LatentSFTConfig
    from .trainers.latent_sft_trainer import LatentSFTTrainer as LatentSFTTrainer
    from .trainers.minillm_config import MiniLLMConfig as MiniLLMConfig
    from .trainers.minillm_trainer import MiniLLMTrainer as MiniLLMTrainer
    from .trainers.parameter_groups import ParameterGroupSpec as ParameterGroupSpec
    from .trainers.ppo_config import PPOConfig as PPOConfig
    from .trainers.ppo_trainer import PPOTrainer as PPOTrainer
    from .trainers.pretraining_config import PretrainingConfig as PretrainingConfig
    from .trainers.pretraining_trainer import PretrainingTrainer as PretrainingTrainer


_EXPORTS = {
    "supervision.evidence_flow": ["EvidenceFlow", "evidence_flow"],
    "recipes.command_line.evidence_arguments": ["EvidenceFlowArguments"],
    "callbacks.evidence_flow_callback": ["EvidenceFlowCallback"],
    "callbacks.layer_dropout_callback": ["LayerDropoutCallback"],
    "supervision.config": ["EvidenceFlowConfig"],
    "callbacks.log_file": ["LogFileCallback"],
    "callbacks.parameter_group_watch": ["ParameterGroupWatch"],
    "callbacks.router_statistics_callback": ["RouterStatisticsCallback"],
    "probe.probe": ["EvidenceProbe", "ProbeResult"],
    "models.router_statistics": ["RouterStatistics"],
    "data.thought_rows": ["load_thought_rows"],
    "data.thought_targets": ["thought_targets_from_traces", "traces_from_samples"],
    "losses.next_token": ["NextTokenTargets"],
    "models.ablation.configuration_ablation": ["AblationLlamaConfig"],
    "models.ablation.modeling_ablation": ["AblationLlamaForCausalLM", "AblationLlamaModel"],
    "models.auto_looped": ["load_looped_model"],
    "models.auto_thinking": ["load_thinking_model"],
    "models.base_export": ["export_base_model"],
    "models.crosslayer.configuration_crosslayer": ["CrossLayerLlamaConfig"],
    "models.crosslayer.extra_parameters": ["extra_parameters"],
    "models.crosslayer.modeling_crosslayer": ["CrossLayerLlamaForCausalLM", "CrossLayerLlamaModel"],
    "models.declared": ["no_decay_names"],
    "models.decoder": ["DecoderParts", "decoder_parts", "record_layer_states"],
    "models.hub": ["hub_code"],
    "models.looped.configuration_looped": ["LoopedLlamaConfig"],
    "models.looped.modeling_looped": ["LoopedLlamaForCausalLM", "LoopedLlamaModel"],
    "models.thinking.answer_marker": ["MarkerAutomaton"],
    "models.thinking.intervention": ["ThinkingIntervention"],
    "models.thinking.thinking_rollout": ["GenerateThinkingOutput", "ThinkingRollout", "collect_thinking"],
    "models.thinking.families": [
        "ThinkingLlamaConfig",
        "ThinkingLlamaForCausalLM",
        "ThinkingLlamaModel",
        "ThinkingQwen2Config",
        "ThinkingQwen2ForCausalLM",
        "ThinkingQwen2Model",
        "ThinkingQwen3Config",
        "ThinkingQwen3ForCausalLM",
        "ThinkingQwen3Model",
    ],
    "models.tinyseek.configuration_tinyseek": ["TinySeekConfig"],
    "models.tinyseek.convert_tinyseek": ["convert_original_checkpoint"],
    "models.tinyseek.cost_report": ["CostReport", "cost_report"],
    "models.tinyseek.modeling_tinyseek": ["TinySeekForCausalLM", "TinySeekModel"],
    "registration": ["register_models"],
    "rollouts.engine": ["RolloutEngine"],
    "run_folder.atomic_checkpoint": ["AtomicCheckpointMixin"],
    "run_folder.resumable_trainer": ["ResumableTrainerMixin"],
    "run_folder.training_run": ["training_run"],
    "trainers.hrpo_config": ["HRPOConfig"],
    "trainers.hrpo_trainer": ["HRPOTrainer"],
    "trainers.latent_sft_config": ["LatentSFTConfig"],
    "trainers.latent_sft_trainer": ["LatentSFTTrainer"],
    "trainers.ppo_config": ["PPOConfig"],
    "trainers.ppo_trainer": ["PPOTrainer"],
    "trainers.pretraining_config": ["PretrainingConfig"],
    "trainers.pretraining_trainer": ["PretrainingTrainer"],
    "trainers.minillm_config": ["MiniLLMConfig"],
    "trainers.minillm_trainer": ["MiniLLMTrainer"],
    "trainers.parameter_groups": ["ParameterGroupSpec"],
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted(set(globals()) | set(__all__))


# The command starts recipes in processes of their own: it needs no torch, and `env` works with any versions
if Path(sys.argv[0]).stem != "hf-evidenceflow":
    say_loading(sys.argv[0])
    check_versions()
    with quiet_imports():
        __getattr__("register_models")()
