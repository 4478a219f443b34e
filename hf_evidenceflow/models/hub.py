"""Saves a model with its code, so that it loads with `trust_remote_code=True` where this package is not installed."""

from contextlib import contextmanager


@contextmanager
def hub_code(model):
    """
    Within the context, `save_pretrained` and `push_to_hub` of a causal LM of this package also write the code of its
    class and config.

    Example:

    ```python
    >>> with hub_code(model):
    ...     model.push_to_hub("me/my-thinking-model")
    ```
    """
    model_class, config_class = type(model), type(model.config)
    had_map = dict(model.config.auto_map)
    model_class.register_for_auto_class("AutoModelForCausalLM")
    config_class.register_for_auto_class()
    try:
        yield model
    finally:
        del model_class._auto_class, config_class._auto_class
        model.config.auto_map = had_map  # a later save without the code must not point to it
