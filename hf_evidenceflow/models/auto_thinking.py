"""Loads the thinking variant of a checkpoint, whatever its family."""

from dataclasses import fields

from transformers import AutoConfig
from transformers.utils import logging

from ..peft.adapter_file import read_adapter
from .family_check import require_thinking
from .thinking.configuration_thinking import ThinkingConfigMixin
from .thinking.families import PREFIX, thinking_family
from .weights import check_adapter, check_model_folder, load_checked, naming_folder


logger = logging.get_logger(__name__)

# Names of the text model within one of text and images -> its own
_TEXT_MODEL = {r"^language_model\.lm_head": "lm_head", r"^language_model\.model": "model"}
_TEXT_MODEL |= {r"^model\.language_model": "model"}
# Keyword arguments that say where a file is, as opposed to how the model is built
_LOCATION = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def thinking_class(path_or_id: str, **kwargs):
    """
    The thinking class for a checkpoint of any decoder, plain or thinking, or for the base of an adapter. Of one of
    text and images it is that of the text model.

    Of the keyword arguments only those that say where the files are (`revision`, `token`, ...) are read.

    Raises:
        `ValueError`: if the checkpoint's type has no thinking variant, or fails a check of
            [`~models.family_check.require_thinking`].
    """
    return class_of_config(_config(path_or_id, {key: kwargs[key] for key in _LOCATION if key in kwargs}))


def class_of_config(config):
    """As [`thinking_class`], for a config."""
    text = config.get_text_config(decoder=True)
    cls = thinking_family(text.model_type).causal_lm
    if not text.model_type.startswith(PREFIX):
        require_thinking(text, config.name_or_path)
    return cls


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
        return _load(path_or_id, location, kwargs)
    others = {key: value for key, value in kwargs.items() if key not in location}
    return _load_adapter(path_or_id, adapter, location, is_trainable, others)


def _load(path_or_id, location, kwargs):
    config = _config(path_or_id, location)
    cls = class_of_config(config)
    text = config.get_text_config(decoder=True)
    if text is config:
        return load_checked(cls, path_or_id, **kwargs)
    logger.warning(
        f"`{path_or_id}` is a checkpoint of type `{config.model_type}`. Its text model is loaded, of type "
        f"`{cls.config_class.model_type}`; the rest, such as a vision tower, is left out and not saved again."
    )
    model = load_checked(cls, path_or_id, key_mapping=_TEXT_MODEL | kwargs.pop("key_mapping", {}), **kwargs)
    del model._weight_conversions  # a later save has the names of a text model
    return model


def _load_adapter(path_or_id, adapter, location, is_trainable, kwargs):
    from peft import PeftModel

    base = adapter["base_model_name_or_path"]
    at_base = {key: value for key, value in location.items() if key not in ("revision", "subfolder")}
    at_base["revision"] = adapter.get("revision")
    own = [field.name for field in fields(ThinkingConfigMixin)]
    given = {name: kwargs[name] for name in own if name in kwargs}
    settings = adapter.get("thinking_config") or {}
    if not settings and "thinking_mode" not in given and not _config(base, at_base).model_type.startswith(PREFIX):
        raise ValueError(
            f"Neither the adapter {path_or_id!r} nor its base {base!r} says how the model thinks. Pass the settings "
            "of its training, such as `thinking_mode='projection'`."
        )
    model = _load(base, at_base, {**at_base, **settings, **kwargs})
    model.config.name_or_path = path_or_id  # where the tokenizer is
    with naming_folder(path_or_id):
        model = PeftModel.from_pretrained(model, path_or_id, is_trainable=is_trainable, **location)
    for name, value in given.items():  # the adapter has set its own
        setattr(model.config, name, value)
    model.config.check_thinking()
    check_adapter(model, path_or_id)
    return model


def _config(path_or_id, location):
    with naming_folder(path_or_id):
        return AutoConfig.from_pretrained(path_or_id, **location)
