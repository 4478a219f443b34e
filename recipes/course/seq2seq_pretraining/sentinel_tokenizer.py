"""A tokenizer with sentinels and an EOS of its own for targets, beside the `<|endoftext|>` between documents."""

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

from hf_evidenceflow.data.text_tokenizer import train_text_tokenizer


END_OF_TARGET = "</s>"


def train_sentinel_tokenizer(documents: Iterable[str], vocab_size: int, sentinels: int) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer and adds T5's special tokens. The sentinels come behind the vocabulary, and
    `</s>` last: a target ends in it, while `<|endoftext|>` may stand inside a row of several documents.

    Args:
        documents (`Iterable[str]`):
            Text to train on.
        vocab_size (`int`):
            As in [`~data.text_tokenizer.train_text_tokenizer`], without the added tokens.
        sentinels (`int`):
            Number of sentinels, 1 or more.

    Returns:
        [`~transformers.PreTrainedTokenizerFast`]: the tokenizer.

    Raises:
        `ValueError`: if there is to be no sentinel.
    """
    if sentinels < 1:
        raise ValueError(f"`sentinels` must be at least 1, got {sentinels}.")
    tokenizer = train_text_tokenizer(documents, vocab_size)
    names = [f"<extra_id_{index}>" for index in range(sentinels)]
    tokenizer.add_tokens([*names, END_OF_TARGET], special_tokens=True)
    return tokenizer


def sentinel_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """
    Ids of the sentinels of a tokenizer, in their order.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            As from [`train_sentinel_tokenizer`], or T5's own.

    Returns:
        `list[int]`: ids of `<extra_id_0>`, `<extra_id_1>`, ...

    Raises:
        `ValueError`: if it has none.
    """
    vocabulary, ids = tokenizer.get_vocab(), []
    while (name := f"<extra_id_{len(ids)}>") in vocabulary:
        ids.append(vocabulary[name])
    if not ids:
        raise ValueError("The tokenizer has no `<extra_id_0>`. Make it with `train_sentinel_tokenizer`.")
    return ids
