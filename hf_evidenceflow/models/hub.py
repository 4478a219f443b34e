"""Saves a model with its code, so that it loads with `trust_remote_code=True` where this package is not installed."""

from contextlib import contextmanager
from pathlib import Path

from transformers.dynamic_module_utils import custom_object_save

from ..atomic_write import atomic_write_text
from .thinking.hub_source import hub_module, hub_source
from .thinking.modeling_thinking import ThinkingCausalLMMixin


@contextmanager
def hub_code(model):
    """
    Within the context, `save_pretrained` and `push_to_hub` of a causal LM of this package also write the code of its
    class and config; that of a thinking model is one generated file.

    Raises:
        `ValueError`: if `save_pretrained` is given `push_to_hub=True`, which would leave the code out.

    Example:

    ```python
    >>> with hub_code(model):
    ...     model.push_to_hub("me/my-thinking-model")
    ```
    """
    cls, had_map = type(model), dict(model.config.auto_map)
    thinks = isinstance(model, ThinkingCausalLMMixin)

    def place(found):
        return f"{hub_module(cls) if thinks else found.__module__.rpartition('.')[2]}.{found.__name__}"

    def save_pretrained(save_directory, *args, push_to_hub=False, **kwargs):
        if push_to_hub:
            raise ValueError("`push_to_hub=True` would leave the code out. Call `model.push_to_hub(repo_id)`.")
        cls.save_pretrained(model, save_directory, *args, **kwargs)
        if thinks:
            atomic_write_text(Path(save_directory) / f"{hub_module(cls)}.py", hub_source(cls))
        else:
            custom_object_save(model, save_directory)

    model.config.auto_map = {"AutoConfig": place(cls.config_class), "AutoModelForCausalLM": place(cls)}
    model.save_pretrained = save_pretrained  # `push_to_hub` uploads what it writes
    try:
        yield model
    finally:
        del model.save_pretrained
        model.config.auto_map = had_map  # a later save without the code must not point to it
