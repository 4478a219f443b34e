"""Trains a byte-level BPE tokenizer on documents."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .text import END_OF_TEXT


PAD = "<|pad|>"
BYTES = 256


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
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(documents, trainer)
    return wrap_tokenizer(backend)


def wrap_tokenizer(backend: Tokenizer) -> PreTrainedTokenizerFast:
    """The trained `tokenizers.Tokenizer` as transformers takes it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=PAD
    )
