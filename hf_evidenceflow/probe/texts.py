"""Texts as token ids for the probe, and token ids as text for people."""

import logging
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedTokenizerBase


logger = logging.getLogger(__name__)

# How byte-level and sentencepiece vocabularies spell a leading space
_SPACES = ("Ġ", "▁")


def encode_texts(
    texts: str | Sequence[str], tokenizer: PreTrainedTokenizerBase | None, max_length: int | None = None
) -> list[dict[str, torch.Tensor]]:
    """
    Turn each text into a batch of one row.

    Args:
        texts (`str` or `Sequence[str]`):
            One or several texts.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer; its own special tokens are added.
        max_length (`int`, *optional*):
            Tokens that are kept of a text; a longer one is cut with a warning.

    Returns:
        `list[dict[str, torch.Tensor]]`: `{"input_ids": (1, T)}` for each text.

    Raises:
        ValueError: if there is no tokenizer or no text, or a text has fewer than two tokens.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if tokenizer is None:
        raise ValueError("Texts need a tokenizer: pass `tokenizer`, or a batch with `input_ids`.")
    if not texts:
        raise ValueError("There is no text to look at: pass at least one.")
    batches = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        if len(ids) < 2:
            raise ValueError(
                f"The text {text[:60]!r} has {len(ids)} token(s): a next token needs two or more. Pass a longer text."
            )
        if max_length is not None and len(ids) > max_length:
            logger.warning("The text %r has %d tokens; the first %d are used.", text[:40], len(ids), max_length)
        batches.append({"input_ids": torch.tensor([ids[:max_length]])})
    return batches


def token_strings(ids: Iterable[int], tokenizer: PreTrainedTokenizerBase | None) -> dict[int, str]:
    """
    The text of single tokens by id, leading spaces kept. A token that is part of a character only keeps its name in
    the vocabulary; without a tokenizer, and for ids beyond it, the id in brackets stands for the text.
    """
    return {index: _token_string(index, tokenizer) for index in sorted(set(ids))}


def visible(text: str) -> str:
    """A token's text on one line, with marks for what cannot be seen: `·` space, `↵` line break, `⇥` tab."""
    text = text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text) or "∅"


def _token_string(index, tokenizer):
    # A model's vocabulary is often padded beyond its tokenizer's
    name = None if tokenizer is None or index >= len(tokenizer) else tokenizer.convert_ids_to_tokens(index)
    if name is None:
        return f"[{index}]"
    if not name.strip("".join(_SPACES)):
        return " " * len(name)
    text = tokenizer.decode([index], clean_up_tokenization_spaces=False)
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return name
    return f" {text}" if name.startswith(_SPACES) and not text.startswith(" ") else text
