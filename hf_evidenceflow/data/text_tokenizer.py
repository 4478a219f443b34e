"""Trains a byte-level BPE tokenizer on documents."""

from collections.abc import Iterable

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ..tokenization.training import BYTES, train_backend
from .text import END_OF_TEXT


PAD = "<|pad|>"


def train_text_tokenizer(documents: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """
    Trains a byte-level BPE tokenizer, as GPT-2's: every text can be encoded and is decoded to itself, and the same
    text gives the same tokenizer. `vocab_size` counts the 256 bytes, `<|endoftext|>` (id 0, both EOS and BOS) and
    `<|pad|>` (id 1), and is at least 258; a short text may give fewer.
    """
    if vocab_size < BYTES + 2:
        raise ValueError(
            f"`train_vocab_size` must be at least {BYTES + 2} (256 bytes and 2 special tokens), got {vocab_size}."
        )
    return wrap_tokenizer(train_backend(documents, vocab_size, [END_OF_TEXT, PAD]))


def wrap_tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """The trained `tokenizers.Tokenizer` as transformers takes it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD
    )
