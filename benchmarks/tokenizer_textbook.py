"""Byte-level BPE as a textbook has it, to compare with: one process, all pairs counted anew for each merge."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import regex

from hf_evidenceflow.tokenization.pretokens import GPT2_PATTERN


Word = tuple[bytes, ...]


def count_words(path: str | Path, special_token: str) -> Counter[Word]:
    """Pre-tokens of a file that is read at once."""
    words: Counter[Word] = Counter()
    for document in Path(path).read_text(encoding="utf-8").split(special_token):
        for match in regex.finditer(GPT2_PATTERN, document):
            words[tuple(bytes([byte]) for byte in match.group().encode())] += 1
    return words


def learn_merges(words: Counter[Word], num_merges: int) -> list[tuple[bytes, bytes]]:
    """Merges in order, fewer if each word has become one token; of the most frequent pairs the greatest, by bytes."""
    merges = []
    for _ in range(num_merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        merged: Counter[Word] = Counter()
        for word, count in words.items():
            merged[join(word, best)] += count
        words = merged
    return merges


def join(word: Word, pair: tuple[bytes, bytes]) -> Word:
    """The word with each occurrence of the pair as one token, from the left."""
    joined, place = [], 0
    while place < len(word):
        step = 2 if word[place : place + 2] == pair else 1
        joined.append(b"".join(word[place : place + step]))
        place += step
    return tuple(joined)


def encode(text: str, ranks: dict[tuple[bytes, bytes], int], ids: dict[bytes, int]) -> list[int]:
    """Token ids of a text without special tokens: in each pre-token the first merge that fits, until none does."""
    encoded = []
    for match in regex.finditer(GPT2_PATTERN, text):
        word: Word = tuple(bytes([byte]) for byte in match.group().encode())
        while pairs := [pair for pair in pairwise(word) if pair in ranks]:
            word = join(word, min(pairs, key=ranks.__getitem__))
        encoded += [ids[token] for token in word]
    return encoded
