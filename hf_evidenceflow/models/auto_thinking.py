"""Loads the thinking variant of a checkpoint, whatever its family."""

import os

from transformers import AutoConfig

from ..files import check_fields, read_json
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
    The thinking class for a checkpoint of a supported family, plain or thinking.

    Args:
        path_or_id (`str`):
            Hub name or local folder.
        kwargs:
            Where the files are (`revision`, `token`, ...); all else is ignored.

    Raises:
        `ValueError`: if the checkpoint's type has no thinking variant.
    """
    location = {key: kwargs[key] for key in _LOCATION if key in kwargs}
    with naming_folder(path_or_id):
        model_type = AutoConfig.from_pretrained(path_or_id, **location).model_type
    try:
        return THINKING_CLASSES[model_type.removeprefix("thinking_")]
    except KeyError:
        raise ValueError(
            f"{path_or_id!r} is a checkpoint of type `{model_type}`, which has no thinking variant. Supported types: "
            f"{', '.join(sorted(THINKING_CLASSES))}, and these with the prefix `thinking_`."
        ) from None


def load_thinking_model(path_or_id: str, **kwargs):
    """
    Load a checkpoint as a thinking model: base weights plus its thinking modules, fresh ones where it has none.

    Args:
        path_or_id (`str`):
            Hub name or local folder of a plain or a thinking checkpoint, or a local folder with an adapter saved by
            [`HRPOTrainer`].
        kwargs:
            Passed to `from_pretrained`: `dtype`, `device_map`, ... and fields of the config such as `thinking_mode`.

    Returns:
        [`~transformers.PreTrainedModel`], or for an adapter folder a [`~peft.PeftModel`] around it.

    Raises:
        `OSError`, `ValueError`: if the checkpoint's type has no thinking variant, or as [`load_checked`].

    Example:

    ```python
    >>> from hf_evidenceflow import load_thinking_model

    >>> model = load_thinking_model("Qwen/Qwen2.5-0.5B-Instruct", thinking_mode="projection")
    ```
    """
    check_model_folder(path_or_id)
    adapter = os.path.join(path_or_id, "adapter_config.json")
    if not os.path.isfile(adapter):
        return load_checked(thinking_class(path_or_id, **kwargs), path_or_id, **kwargs)

    from peft import PeftModel

    settings = read_json(adapter)
    check_fields(settings, adapter, base_model_name_or_path=str)
    base = settings["base_model_name_or_path"]
    # The trainer saves the thinking config beside the adapter; the base checkpoint may be a plain one
    cls = thinking_class(path_or_id if os.path.isfile(os.path.join(path_or_id, "config.json")) else base, **kwargs)
    fields = {
        key: kwargs.pop(key) for key in list(kwargs) if key in cls.config_class.__dataclass_fields__ and key != "dtype"
    }
    with naming_folder(path_or_id):
        config = cls.config_class.from_pretrained(path_or_id, **fields)
    model = load_checked(cls, base, config=config, **kwargs)
    model.config._name_or_path = path_or_id  # where the tokenizer is
    with naming_folder(path_or_id):
        model = PeftModel.from_pretrained(model, path_or_id)
    check_adapter(model, path_or_id)
    return model
