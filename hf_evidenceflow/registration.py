"""Registers the package's models with transformers' Auto classes, and their adapters with PEFT."""

from typing import Any

from peft.utils import constants
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .models.ablation.modeling_ablation import AblationLlamaForCausalLM, AblationLlamaModel
from .models.crosslayer.modeling_crosslayer import CrossLayerLlamaForCausalLM, CrossLayerLlamaModel
from .models.looped.modeling_looped import LoopedLlamaForCausalLM, LoopedLlamaModel
from .models.thinking.families import PREFIX, register_families
from .models.tinyseek.modeling_tinyseek import TinySeekForCausalLM, TinySeekModel
from .peft.thinking_adapters import register_thinking_adapters


# Causal LM -> its model without a head. Those that think are made on demand
MODEL_CLASSES: dict[Any, type] = {
    TinySeekForCausalLM: TinySeekModel,
    CrossLayerLlamaForCausalLM: CrossLayerLlamaModel,
    AblationLlamaForCausalLM: AblationLlamaModel,
    LoopedLlamaForCausalLM: LoopedLlamaModel,
}


def register_adapter_targets() -> None:
    """Give our model types the default targets of their families in PEFT. Calling it again changes nothing."""
    for name, mapping in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
            for cls in (CrossLayerLlamaForCausalLM, AblationLlamaForCausalLM, LoopedLlamaForCausalLM):
                if "llama" in mapping:
                    mapping.setdefault(cls.config_class.model_type, mapping["llama"])
            for family in [family for family in mapping if not family.startswith(PREFIX)]:
                mapping.setdefault(PREFIX + family, mapping[family])
    constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.setdefault(
        "tinyseek", ["q_b_proj", "kv_b_proj", "q_proj", "v_proj"]
    )


def register_models() -> None:
    """
    Make `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the package's model types, and PEFT the adapters of
    thinking models. Calling it again changes nothing.

    Raises:
        `ValueError`: if a foreign class owns one of the model types.
    """
    for causal_lm, model in MODEL_CLASSES.items():
        config = causal_lm.config_class
        if config.model_type in CONFIG_MAPPING:
            owner = CONFIG_MAPPING[config.model_type]
            if owner is config:
                continue
            raise ValueError(
                f"The model type `{config.model_type}` of {config.__module__}.{config.__qualname__} is already "
                "registered by "
                f"{owner.__module__}.{owner.__qualname__}. Remove that registration, or import only one of the two."
            )
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
        AutoModelForCausalLM.register(config, causal_lm)
    register_families(own=[CrossLayerLlamaForCausalLM, LoopedLlamaForCausalLM])
    register_thinking_adapters()
    register_adapter_targets()
