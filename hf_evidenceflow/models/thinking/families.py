"""The thinking classes of every decoder of transformers, made when they are first asked for.

A class is named after transformers' own, `ThinkingGemma3ForCausalLM` after `Gemma3ForCausalLM`, and can be imported
from here under that name, so that pickle finds it. The model type is `thinking_` before the decoder's.
"""

import threading
from collections.abc import Iterable
from typing import NamedTuple

import transformers
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING,
)

from .configuration_thinking import ThinkingConfigMixin
from .generation_thinking import ThinkingGenerationMixin
from .modeling_thinking import ThinkingCausalLMMixin, ThinkingModelMixin


PREFIX = "thinking_"
_lock = threading.RLock()
_families: dict[str, "ThinkingFamily"] = {}
_own: dict[str, type[PreTrainedModel]] = {}  # decoders of this package, by the names of their classes


class ThinkingFamily(NamedTuple):
    """The thinking classes of a model type."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    causal_lm: type[PreTrainedModel]


def thinking_family(model_type: str) -> ThinkingFamily:
    """
    The thinking classes of a decoder of transformers, known to the Auto classes from the first call on.

    Args:
        model_type (`str`): type of the plain decoder, such as `"qwen2"`, or of its thinking variant.

    Raises:
        `ValueError`: if transformers has no causal LM of that type.
    """
    model_type = model_type.removeprefix(PREFIX)
    with _lock:
        if model_type not in _families:
            _families[model_type] = _make(model_type)
        return _families[model_type]


def _make(model_type):
    plain = _plain_classes(model_type)
    own = {"__module__": __name__}
    names = [f"Thinking{cls.__name__}" for cls in plain]
    config = strict(type(names[0], (ThinkingConfigMixin, plain[0]), {**own, "model_type": PREFIX + model_type}))
    own["config_class"] = config
    model = type(names[1], (ThinkingModelMixin, plain[1]), own)
    bases = (ThinkingCausalLMMixin, ThinkingGenerationMixin, plain[2])
    causal_lm = type(names[2], bases, {**own, "thinking_model_class": model})
    globals().update(zip(names, (config, model, causal_lm)))
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
    return ThinkingFamily(config, model, causal_lm)


def _plain_classes(model_type):
    try:
        config = CONFIG_MAPPING[model_type]
        classes = (config, MODEL_MAPPING[config], MODEL_FOR_CAUSAL_LM_MAPPING[config])
    except KeyError:
        classes = None
    if classes is None or classes[2].config_class is not config:
        raise ValueError(
            f"Type `{model_type}` has no thinking variant: transformers {transformers.__version__} has no causal LM "
            "of that type. Take a decoder, whose type `AutoModelForCausalLM` knows."
        )
    return classes


class _OnDemand(type):
    """A config class that is made when it is used: registering two hundred would import as many modules."""

    family: str

    def __call__(cls, *args, **kwargs):
        return thinking_family(cls.family).config(*args, **kwargs)

    def __getattr__(cls, name):
        return getattr(thinking_family(cls.family).config, name)


def register_families(own: Iterable[type[PreTrainedModel]] = ()) -> None:
    """
    Make `AutoConfig` know the thinking types of all decoders of transformers and of `own` causal LMs, which the Auto
    classes know. Calling it again changes nothing.

    Raises:
        `ValueError`: if a foreign class owns one of the model types.
    """
    names = {family: CONFIG_MAPPING_NAMES[family] for family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    for cls in own:
        config = cls.config_class
        names[config.model_type] = config.__name__
        _own.update({each.__name__: cls for each in (config, MODEL_MAPPING[config], cls)})
    for family, plain in names.items():
        model_type, name = PREFIX + family, f"Thinking{plain}"
        if model_type not in CONFIG_MAPPING:
            body = {"__module__": __name__, "model_type": model_type, "family": family}
            AutoConfig.register(model_type, _OnDemand(name, (), body))
        elif (owner := CONFIG_MAPPING[model_type]).__module__ != __name__:
            raise ValueError(
                f"The model type `{model_type}` of {__name__}.{name} is already registered by "
                f"{owner.__module__}.{owner.__qualname__}. Remove that registration, or import only one of the two."
            )


def __getattr__(name):
    stem = name.removeprefix("Thinking")
    plain = getattr(transformers, stem, _own.get(stem)) if stem != name else None
    if not isinstance(plain, type) or not issubclass(plain, (PreTrainedConfig, PreTrainedModel)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    config: type[PreTrainedConfig] = plain if issubclass(plain, PreTrainedConfig) else plain.config_class
    found = {cls.__name__: cls for cls in thinking_family(config.model_type)}
    if name not in found:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; did you mean one of {sorted(found)}?")
    return found[name]
