"""Trains byte-level BPE tokenizers on files, with `tokenizers` or with the exact rule for ties."""

import os
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .exact_bpe import train_merges
from .pretokens import all_pieces, count_pretokens, read_texts


BYTES = 256
TIE_RULES = ("tokenizers", "greatest")
_TEXT_BYTES = 1 << 16  # `tokenizers` counts texts in parallel and keeps many of them


def train_tokenizer(
    paths: Sequence[str | os.PathLike],
    vocab_size: int,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    tie_rule: str = "tokenizers",
    processes: int = 1,
    progress: bool = False,
) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer with GPT-2's pre-tokenization.

    Args:
        paths (`Sequence[str | os.PathLike]`):
            Text files, larger than memory if need be.
        vocab_size (`int`):
            Tokens: special ones, the 256 bytes, merges. A small text may give fewer.
        special_tokens (`Sequence[str]`, *optional*, defaults to `("<|endoftext|>",)`):
            Tokens that are never split and never part of another; they have the first ids. The first one is BOS, EOS
            and padding.
        tie_rule (`str`, *optional*, defaults to `"tokenizers"`):
            Which of equally frequent pairs is merged first: `"tokenizers"`, as that library does; `"greatest"`, the
            lexicographically greatest pair of byte strings (CS336).
        processes (`int`, *optional*, defaults to `1`):
            Processes that count words, with the rule `"greatest"`; `tokenizers` has threads of its own.
        progress (`bool`, *optional*, defaults to `False`):
            Whether bars show the progress.

    Raises:
        `ValueError`: if the vocabulary has no room for the bytes and special tokens, the rule does not exist, or the
        files
            hold no text.
    """
    special_tokens = list(dict.fromkeys(special_tokens))
    least = BYTES + len(special_tokens)
    if vocab_size < least:
        raise ValueError(
            f"`vocab_size` must be at least {least} (256 bytes and {len(special_tokens)} special tokens), got "
            f"{vocab_size}."
        )
    if tie_rule not in TIE_RULES:
        raise ValueError(f"`tie_rule` must be one of {', '.join(map(repr, TIE_RULES))}, got {tie_rule!r}.")
    if tie_rule == "greatest":
        words = count_pretokens(paths, special_tokens, processes, progress=progress)
        return from_merges(train_merges(words, vocab_size - least, progress), special_tokens)
    spans = all_pieces(paths, special_tokens, _TEXT_BYTES)
    if not spans:
        raise ValueError(f"The files hold no text to train on: {', '.join(map(str, paths))}.")
    # Bytes that are no UTF-8 cannot be handed over; they are tokens of their own anyway
    texts = (
        text.encode(errors="ignore").decode()
        for span in spans
        for text in read_texts(span[0], special_tokens, span[1])
    )
    return _wrap(train_backend(texts, vocab_size, special_tokens, progress=progress), special_tokens)


def train_backend(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], digits: bool = False, progress: bool = False
) -> Tokenizer:
    """
    A byte-level BPE `tokenizers.Tokenizer` of texts, special tokens first and then the 256 bytes; with `digits` each
    digit is a token of its own.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]) if digits else byte_level
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def from_merges(merges: Sequence[tuple[bytes, bytes]], special_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """
    A tokenizer out of merges in order: special tokens have the first ids, then come the 256 bytes, then the merges.
    """
    letters = bytes_to_unicode()

    def spell(token):
        return "".join(letters[byte] for byte in token)

    pieces = [*special_tokens, *(letters[byte] for byte in range(BYTES)), *(spell(a + b) for a, b in merges)]
    vocab = {}
    for piece in pieces:  # two merges may spell the same token
        vocab.setdefault(piece, len(vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[(spell(a), spell(b)) for a, b in merges]))
    return _wrap(backend, special_tokens)


def _wrap(backend, special_tokens):
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special_tokens])
    roles = {}
    if special_tokens:
        roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), special_tokens[0])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, additional_special_tokens=list(special_tokens[1:]) or None, **roles
    )
