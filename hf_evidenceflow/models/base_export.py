"""Writes the base model of a thinking model as a plain checkpoint, for engines that know only the plain type."""

import os

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from .thinking.configuration_thinking import ThinkingConfigMixin
from .thinking.families import PREFIX
from .thinking.thinking_residual import THINKING_MODULES


def export_base_model(model, folder: str | os.PathLike, tokenizer=None) -> None:
    """
    Save a thinking model without its thinking modules, as a plain checkpoint of its family.

    What is saved computes what the model computes in mode `none`; vLLM, SGLang and stock transformers load it without
    this package. The thinking is lost in it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            Thinking model. Merge an adapter first (`merge_and_unload()`).
        folder (`str` or `os.PathLike`):
            Where to save it.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Saved next to it.

    Raises:
        `ValueError`: if the model is no thinking model.

    Example:

    ```python
    >>> from hf_evidenceflow import export_base_model, load_thinking_model

    >>> export_base_model(load_thinking_model("outputs/hrpo-gsm8k"), "outputs/base")
    ```
    """
    if not isinstance(model.config, ThinkingConfigMixin):
        raise ValueError(
            f"{type(model).__name__} is no thinking model, so there is nothing to leave out. If it is an adapter "
            "around one, merge it first with `merge_and_unload()`."
        )
    fields = {name: value for name, value in model.config.to_dict().items() if not name.startswith("thinking_")}
    for name in ("model_type", "architectures", "auto_map"):
        fields.pop(name, None)
    config = AutoConfig.for_model(model.config.model_type.removeprefix(PREFIX), **fields)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config)
    weights = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not any(module in name for module in THINKING_MODULES)
    }
    plain.load_state_dict(weights, assign=True)
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
