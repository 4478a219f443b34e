"""Complete settings for `generate`: what is not asked for is off, whatever the model's generation_config.json says.

`generate` takes each field that is `None` from the model's generation config, so that a configuration of ours would
draw with the checkpoint's `min_p` or `no_repeat_ngram_size`.
"""

from transformers import GenerationConfig


_TOKEN_IDS = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")


class OwnGenerationConfig(GenerationConfig):
    """A [`~transformers.GenerationConfig`] that takes nothing over from the model's; see [`own_generation_config`]."""

    def update(self, defaults_only=False, allow_custom_entries=False, **kwargs):
        """Differs from GenerationConfig.update in staying as it is where `generate` fills in the model's settings."""
        # The neutral defaults that `generate` fills in behind them come without custom entries
        if defaults_only and allow_custom_entries:
            return kwargs
        return super().update(defaults_only, allow_custom_entries, **kwargs)


def own_generation_config(model, **settings) -> OwnGenerationConfig:
    """
    The configuration of a `generate` call that depends on these settings alone.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]): gives the special tokens that are left out.
        settings: fields of [`~transformers.GenerationConfig`]. A special token set to `None` is none.

    Returns:
        [`OwnGenerationConfig`]: to be passed as `generation_config`, without further generation arguments. Sampling is
        from all tokens unless `top_k` is given.

    Example:

    ```python
    >>> config = own_generation_config(model, max_new_tokens=32, do_sample=True)
    >>> model.generate(**inputs, generation_config=config)
    ```
    """
    tokens = {name: getattr(model.generation_config, name) for name in _TOKEN_IDS}
    neutral = {"top_k": 0} if settings.get("do_sample") else {}
    return OwnGenerationConfig(**(tokens | neutral | settings))
