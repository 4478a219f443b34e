"""Makes a causal LM with random weights from a model type and the fields of its config."""

import contextlib
import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ..files import parse_json
from .thinking.families import PREFIX, thinking_family
from .weights import check_dtype, raised_here


def config_from_scratch(model_type: str, overrides: Mapping[str, Any], tokenizer) -> PreTrainedConfig:
    """
    A config of any registered model type, fitted to a tokenizer.

    Args:
        model_type (`str`):
            As in a checkpoint's `config.json`: `"llama"`, `"gpt2"`, `"opt"`, ...
        overrides (`Mapping[str, Any]`):
            Fields of the config that are not at their default. Unless they say otherwise, the vocabulary and the
            special tokens are the tokenizer's.

    Raises:
        `ValueError`: if the model type is not known or has no causal LM, a field does not exist, or the vocabulary is
            smaller than the tokenizer's.
    """
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"The model type {model_type!r} is not known.{_nearest(model_type, list(CONFIG_MAPPING.keys()))}"
        )
    if model_type.startswith(PREFIX):
        thinking_family(model_type)  # its classes are made on demand
    config_class = CONFIG_MAPPING[model_type]
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"The model type {model_type!r} has no causal LM. Take another one, such as 'llama'.")
    fields = {field.name for field in dataclasses.fields(config_class) if field.init} | set(config_class.attribute_map)
    for name in overrides:
        if name not in fields:
            raise ValueError(f"`{name}` is no field of {config_class.__name__}.{_nearest(name, sorted(fields))}")
    fitted = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    fitted = {name: value for name, value in fitted.items() if name in fields}
    with _naming_settings(model_type, overrides):
        config = AutoConfig.for_model(model_type, **(fitted | dict(overrides)))
    if config.vocab_size < len(tokenizer):
        raise ValueError(
            f"`vocab_size` is {config.vocab_size}, but the tokenizer has {len(tokenizer)} tokens. Leave it out, or "
            "make it as large."
        )
    return config


def model_from_scratch(model_type: str, overrides: Mapping[str, Any], tokenizer, **kwargs):
    """
    A model with random weights, by torch's seed. `kwargs` go to `AutoModelForCausalLM.from_config`, such as `dtype`
    and `attn_implementation`; the rest is as in [`config_from_scratch`].

    Example:

    ```python
    >>> from transformers import AutoTokenizer
    >>> from hf_evidenceflow.models.from_scratch import model_from_scratch

    >>> tokenizer = AutoTokenizer.from_pretrained("openai-community/gpt2")
    >>> model = model_from_scratch("llama", {"hidden_size": 64, "num_hidden_layers": 2}, tokenizer)
    ```
    """
    check_dtype(kwargs.get("dtype"))
    config = config_from_scratch(model_type, overrides, tokenizer)
    with _naming_settings(model_type, {**overrides, **kwargs}):
        return AutoModelForCausalLM.from_config(config, **kwargs)


@contextlib.contextmanager
def _naming_settings(model_type: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Gives errors of other libraries in the block what was set; errors of ours pass."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if raised_here(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"No `{model_type}` model can be made with {dict(settings)} ({reason}). Correct these."
        ) from error


def parse_overrides(
    overrides: Mapping[str, Any] | str | None, name: str = "config_overrides", example: str = '{"hidden_size": 64}'
) -> dict[str, Any]:
    """
    Fields of a config as a person gives them in the option `name`: a mapping, as from YAML, or a JSON object, as on a
    command line. Anything else is a `ValueError`.
    """
    if isinstance(overrides, str):
        remedy = f"It must be a JSON object such as '{example}', got {overrides!r}."
        overrides = parse_json(overrides, f"`{name}`", remedy=remedy)
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValueError(f"`{name}` must map fields to values, got {overrides!r}.")
    return dict(overrides or {})


def check_positions(config: PreTrainedConfig, block_size: int) -> None:
    """
    Raises a `ValueError` if rows of `block_size` tokens are longer than the model's positions; a config without
    `max_position_embeddings` takes any length.
    """
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and block_size > longest:
        raise ValueError(
            f"`block_size` is {block_size}, but the model has {longest} positions. Take a smaller one, or with "
            "`model_type` set `max_position_embeddings` in `config_overrides`."
        )


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(repr(word) for word in near)}?" if near else " Check its spelling."
