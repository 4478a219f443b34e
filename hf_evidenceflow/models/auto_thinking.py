"""Loads the thinking variant of a checkpoint, whatever its family."""

from dataclasses import fields

from transformers import AutoConfig

from ..peft.adapter_file import read_adapter
from .thinking.configuration_thinking import ThinkingConfigMixin
from .thinking.modeling_thinking_llama import ThinkingLlamaForCausalLM
from .thinking.modeling_thinking_qwen2 import ThinkingQwen2ForCausalLM
from .thinking.modeling_thinking_qwen3 import ThinkingQwen3ForCausalLM
from .weights import check_adapter, check_model_folder, load_checked, naming_folder


THINKING_CLASSES = {
    "llama": ThinkingLlamaForCausalLM,
    "qwen2": ThinkingQwen2ForCausalLM,
    "qwen3": ThinkingQwen3ForCausalLM,
}

# Keyword arguments that say where a file is, as opposed to how the model is built
_LOCATION = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def thinking_class(path_or_id: str, **kwargs):
    """
    The thinking class for a checkpoint of a supported family, plain or thinking, or for the base of an adapter.

    Of the keyword arguments only those that say where the files are (`revision`, `token`, ...) are read.

    Raises:
        `ValueError`: if the checkpoint's type has no thinking variant.
    """
    model_type = _model_type(path_or_id, {key: kwargs[key] for key in _LOCATION if key in kwargs})
    try:
        return THINKING_CLASSES[model_type.removeprefix("thinking_")]
    except KeyError:
        raise ValueError(
            f"{path_or_id!r} is a checkpoint of type `{model_type}`, which has no thinking variant. Supported types: "
            f"{', '.join(sorted(THINKING_CLASSES))}, and these with the prefix `thinking_`."
        ) from None


def load_thinking_model(path_or_id: str, is_trainable: bool = False, **kwargs):
    """
    Load a checkpoint as a thinking model: base weights plus its thinking modules, fresh ones where it has none.

    Args:
        path_or_id (`str`):
            Hub name or local folder of a plain or a thinking checkpoint, or of an adapter of a thinking model.
        is_trainable (`bool`, *optional*, defaults to `False`):
            Whether an adapter is going to be trained on.
        kwargs:
            Passed to `from_pretrained`: `dtype`, `device_map`, ... and fields of the config such as `thinking_mode`.

    Returns:
        [`~transformers.PreTrainedModel`], or for an adapter a [`~peft.PeftModel`] around it.

    Raises:
        `OSError`, `ValueError`: if the checkpoint's type has no thinking variant, nothing says how the model of an
            adapter thinks, or as [`load_checked`].

    Example:

    ```python
    >>> from hf_evidenceflow import load_thinking_model

    >>> model = load_thinking_model("Qwen/Qwen2.5-0.5B-Instruct", thinking_mode="projection")
    ```
    """
    check_model_folder(path_or_id)
    location = {key: kwargs[key] for key in _LOCATION if key in kwargs}
    adapter = read_adapter(path_or_id, **location)
    if adapter is None:
        return load_checked(thinking_class(path_or_id, **kwargs), path_or_id, **kwargs)
    others = {key: value for key, value in kwargs.items() if key not in location}
    return _load_adapter(path_or_id, adapter, location, is_trainable, others)


def _load_adapter(path_or_id, adapter, location, is_trainable, kwargs):
    from peft import PeftModel

    base = adapter["base_model_name_or_path"]
    at_base = {key: value for key, value in location.items() if key not in ("revision", "subfolder")}
    at_base["revision"] = adapter.get("revision")
    cls = thinking_class(base, **at_base)
    own = [field.name for field in fields(ThinkingConfigMixin)]
    given = {name: kwargs[name] for name in own if name in kwargs}
    settings = adapter.get("thinking_config") or {}
    if not settings and "thinking_mode" not in given and not _model_type(base, at_base).startswith("thinking_"):
        raise ValueError(
            f"Neither the adapter {path_or_id!r} nor its base {base!r} says how the model thinks. Pass the settings "
            "of its training, such as `thinking_mode='projection'`."
        )
    model = load_checked(cls, base, **at_base, **settings | kwargs)
    model.config.name_or_path = path_or_id  # where the tokenizer is
    with naming_folder(path_or_id):
        model = PeftModel.from_pretrained(model, path_or_id, is_trainable=is_trainable, **location)
    for name, value in given.items():  # the adapter has set its own
        setattr(model.config, name, value)
    model.config.check_thinking()
    check_adapter(model, path_or_id)
    return model


def _model_type(path_or_id, location):
    with naming_folder(path_or_id):
        return AutoConfig.from_pretrained(path_or_id, **location).model_type
