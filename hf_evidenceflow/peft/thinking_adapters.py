"""
Adapters of thinking models: they carry the thinking settings, and are never put on a model that does not think.

PEFT drops weights that it finds no module for, so that an adapter on a plain base would generate without its thinking.
What is saved here therefore has a PEFT type of its own. Where this package is imported, the type is registered, and
the base that an adapter is put on becomes a thinking model, in place, as PEFT changes its modules in place. Elsewhere
PEFT ends in a `KeyError` that shows the type, which is the remedy.
"""

import enum
from dataclasses import dataclass, fields

from peft import PromptLearningConfig, TaskType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from transformers import PreTrainedModel

from ..models.auto_thinking import class_of_config
from ..models.thinking.configuration_thinking import ThinkingConfigMixin
from ..models.thinking.modeling_thinking import ThinkingCausalLMMixin
from ..models.thinking.thinking_residual import THINKING_MODULES
from .registration import register_method


# Adapters that wrap modules and can train further ones in full, by PEFT type. Not those that compute outside the
# model (Shadow) or need inputs that a rollout does not have (Poly).
METHODS = {
    str(method.value): config
    for method, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    if "modules_to_save" in {field.name for field in fields(config)}
    and not issubclass(config, PromptLearningConfig)
    and method.value not in ("SHADOW", "POLY")
}


class _Text(str, enum.Enum):
    def __str__(self):
        return self.value


# What a process that knows nothing of this package shows
ThinkingPeftType = _Text(
    "ThinkingPeftType",
    {
        name: f"hf_evidenceflow.load_thinking_model (pip install hf-evidenceflow) loads this {name} adapter"
        for name in METHODS
    },
    module=__name__,
)


def thinking_settings(config) -> dict:
    """The thinking fields of a config, by name."""
    return {field.name: getattr(config, field.name) for field in fields(ThinkingConfigMixin)}


def become_thinking(model: PreTrainedModel, settings: dict) -> None:
    """
    Make a plain causal LM its thinking variant, in place, with fresh thinking modules; or give a thinking model other
    settings.

    Raises:
        ValueError: If the model cannot think, or its thinking modules are of another kind.
    """
    if isinstance(model.config, ThinkingConfigMixin):
        _change_settings(model, settings)
        return
    cls = class_of_config(model.config)
    # Accelerate's hooks hold the plain forward
    if not issubclass(cls, type(model)) or hasattr(model, "_hf_hook"):
        raise ValueError(
            f"This adapter was trained on a thinking model, which a {type(model).__name__} cannot become "
            "(split over devices, or of another kind). Load it with `hf_evidenceflow.load_thinking_model`."
        )
    config = model.config  # the same object in each module
    thinking_config = cls.config_class.from_dict({**config.to_dict(), **settings})
    config.__class__ = cls.config_class
    vars(config).pop("model_type", None)
    vars(config).update(thinking_settings(thinking_config), architectures=[cls.__name__], auto_map={})
    model.__class__ = cls
    model.add_thinking_modules()
    embeddings = model.get_input_embeddings().weight
    for name, module in model.base_model.named_children():
        if name not in THINKING_MODULES:
            continue
        module.to_empty(device=embeddings.device)
        module.init_weights(config)
        module.train(model.training)


def _change_settings(model, settings):
    fixed = ("thinking_projection_layers", "thinking_residual_c", "thinking_has_head")
    for name in fixed:
        if name in settings and settings[name] != getattr(model.config, name):
            raise ValueError(
                f"The adapter was trained with `{name}={settings[name]}`, but the model has "
                f"{getattr(model.config, name)}. Load both with `hf_evidenceflow.load_thinking_model(adapter)`."
            )
    for name, value in settings.items():
        setattr(model.config, name, value)
    model.config.check_thinking()


class ThinkingAdapterConfig:
    """Mixin of PEFT configs: the thinking settings, and the type under which the config is saved."""

    _model_config = None  # of the model that the adapter is on

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ThinkingPeftType[self.peft_type.value]

    def to_dict(self):
        output = super().to_dict()
        output["peft_type"] = ThinkingPeftType[self.method].value
        if self._model_config is not None:
            output["thinking_config"] = thinking_settings(self._model_config)
        return output


class ThinkingTuner:
    """Mixin of PEFT tuners: the base model thinks before it gets the adapter."""

    def inject_adapter(self, model, adapter_name, *args, **kwargs):
        become_thinking(model, self.peft_config[adapter_name].thinking_config or {})
        return super().inject_adapter(model, adapter_name, *args, **kwargs)


def carry_thinking(peft_config, model_config) -> None:
    """
    Let a PEFT config save the thinking settings of the model that it is used on, as they are when it is saved. Changed
    in place; left alone if its method is not in `METHODS`.
    """
    name = getattr(peft_config.peft_type, "name", None)
    if type(peft_config) is METHODS.get(name):
        peft_config.__class__ = _CONFIGS[name]
        peft_config.thinking_config = None
    if isinstance(peft_config, ThinkingAdapterConfig):
        peft_config._model_config = model_config
        peft_config.task_type = peft_config.task_type or TaskType.CAUSAL_LM  # AutoPeftModel asks for it


def _config_class(name):
    config = METHODS[name]
    body = {
        "__module__": __name__,
        "__annotations__": {"thinking_config": dict | None},
        "thinking_config": None,
        "method": name,
    }
    return dataclass(type(f"Thinking{config.__name__}", (ThinkingAdapterConfig, config), body))


def _tuner_class(name):
    tuner = PEFT_TYPE_TO_TUNER_MAPPING[name]
    return type(f"Thinking{tuner.__name__}", (ThinkingTuner, tuner), {"__module__": __name__})


_CONFIGS = {name: _config_class(name) for name in METHODS}
_TUNERS = {name: _tuner_class(name) for name in METHODS}
globals().update({cls.__name__: cls for cls in (*_CONFIGS.values(), *_TUNERS.values())})  # pickle looks there


def register_thinking_adapters() -> None:
    """Make PEFT know the adapters of thinking models. Calling it again changes nothing."""
    for name, method in ThinkingPeftType.__members__.items():
        register_method(method, _CONFIGS[name], _TUNERS[name], PEFT_TYPE_TO_PREFIX_MAPPING[name])
    ThinkingCausalLMMixin.on_adapter = staticmethod(carry_thinking)
