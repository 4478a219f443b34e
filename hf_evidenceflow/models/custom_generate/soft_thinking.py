"""Soft Thinking (arXiv 2505.15778): each thought is the mean embedding under the distribution of its token."""

from transformers.generation import GenerationMixin

from .embedding_thoughts import EmbeddingThoughts
from .stop_strings import with_stop_strings


def generate(
    model,
    *,
    tokenizer=None,
    streamer=None,
    thinking_answer_start="</think>",
    thinking_top_k=None,
    thinking_temperature=1.0,
    **kwargs,
):
    """
    Generates with soft thinking: tokens are drawn as always, but until the end of the thinking the model is fed the
    mean embedding under the distribution that a token was drawn from.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): finds the end of the thinking.
        thinking_answer_start (`str`, *optional*, defaults to `"</think>"`): text that ends the thinking of a
            completion; `None`: all of it thinks.
        thinking_top_k (`int`, *optional*): average so many likeliest tokens; `None`: all.
        thinking_temperature (`float`, *optional*, defaults to `1`): of the mean, on top of what sampling does.
        kwargs: arguments of `generate`.
    """
    thoughts = EmbeddingThoughts(
        "soft", None, tokenizer, thinking_answer_start, thinking_top_k, thinking_temperature, streamer
    )
    kwargs = with_stop_strings(tokenizer, kwargs)
    return GenerationMixin.generate(model, custom_generate=thoughts, streamer=streamer, **kwargs)
