"""SwiReasoning (arXiv 2510.05069): thoughts as mean embeddings while the entropy is high, text while it is low."""

from transformers.generation import GenerationMixin

from ..thinking.thinking_schedules import EntropyRule
from .embedding_thoughts import EmbeddingThoughts
from .stop_strings import with_stop_strings


def generate(
    model,
    *,
    tokenizer=None,
    streamer=None,
    thinking_answer_start="</think>",
    thinking_min_latent=1,
    thinking_min_text=512,
    thinking_max_blocks=None,
    thinking_top_k=None,
    thinking_temperature=1.0,
    **kwargs,
):
    """
    Generates in blocks of thoughts and of text: thoughts end where the entropy falls below that of the block's first
    token, text where it rises above.

    Args:
        thinking_min_latent, thinking_min_text (`int`, *optional*, default to `1` and `512`): least length of blocks.
        thinking_max_blocks (`int`, *optional*): blocks of thoughts of a row, at most.
        tokenizer, thinking_answer_start, thinking_top_k, thinking_temperature: as in soft thinking.
        kwargs: arguments of `generate`.
    """
    for name, value, least in (
        ("thinking_min_latent", thinking_min_latent, 1),
        ("thinking_min_text", thinking_min_text, 1),
        ("thinking_max_blocks", thinking_max_blocks or 0, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"`{name}` must be a whole number of at least {least}, got {value!r}.")
    rule = EntropyRule(thinking_min_latent, thinking_min_text, thinking_max_blocks)
    thoughts = EmbeddingThoughts(
        "swi", rule, tokenizer, thinking_answer_start, thinking_top_k, thinking_temperature, streamer
    )
    kwargs = with_stop_strings(tokenizer, kwargs)
    return GenerationMixin.generate(model, custom_generate=thoughts, streamer=streamer, **kwargs)
