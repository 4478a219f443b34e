"""Text for ELMo: words as characters to read, and as indices of a vocabulary to predict.

A character is a byte of UTF-8, as in the published model. A word begins and ends with a character of its own, and so
does a text, as a word of one such character.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch


# 0 is padding, then 256 bytes
_BEGIN_WORD, _END_WORD, _BEGIN_TEXT, _END_TEXT = range(257, 261)
CHARACTERS = 261
IGNORED = -100
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


def word_characters(word: str, max_characters: int) -> list[int]:
    """
    A word as characters; its end is cut off if it is too long.

    Args:
        word (`str`):
            Word, or `<s>` or `</s>` for the begin and end of a text.
        max_characters (`int`):
            Characters C, at least 3.

    Returns:
        `list[int]`: C characters: begin, bytes, end, padding.

    Raises:
        `ValueError`: if there is no room for any character.
    """
    if max_characters < 3:
        raise ValueError(f"`max_characters` must be at least 3 (begin, a character, end), got {max_characters}.")
    if word in (BEGIN, END):
        inner = [_BEGIN_TEXT if word == BEGIN else _END_TEXT]
    else:
        inner = [byte + 1 for byte in word.encode()[: max_characters - 2]]
    characters = [_BEGIN_WORD, *inner, _END_WORD]
    return characters + [0] * (max_characters - len(characters))


def build_vocabulary(texts: Sequence[Sequence[str]], max_words: int) -> list[str]:
    """
    The words to predict: `<unk>`, `<s>`, `</s>`, and the most frequent ones.

    Args:
        texts (`Sequence[Sequence[str]]`):
            Words of each text.
        max_words (`int`):
            Most words, the three included.

    Returns:
        `list[str]`: the words; equally frequent ones by the alphabet.
    """
    counts = Counter(word for words in texts for word in words)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return [UNKNOWN, BEGIN, END, *(word for word in ranked if word not in (UNKNOWN, BEGIN, END))][:max_words]


def cut_texts(documents: Sequence[str], max_words: int) -> list[list[str]]:
    """
    Split documents at white space, into texts of at most `max_words` words.

    Args:
        documents (`Sequence[str]`):
            Documents.
        max_words (`int`):
            Longest text.

    Returns:
        `list[list[str]]`: words of each text; those of one word are left out.
    """
    split = [document.split() for document in documents]
    texts = [words[start : start + max_words] for words in split for start in range(0, len(words), max_words)]
    return [words for words in texts if len(words) > 1]


def unigram_perplexity(
    texts: Sequence[Sequence[str]], held_out: Sequence[Sequence[str]], vocabulary: Sequence[str]
) -> float:
    """
    Perplexity of the frequencies of the words alone: what a language model without any context can reach.

    Args:
        texts, held_out (`Sequence[Sequence[str]]`):
            Words of each text, to count and to measure on. The end of a text is a word of it.
        vocabulary (`Sequence[str]`):
            Words to predict, from [`build_vocabulary`]; all others are `<unk>`. Each is counted once more than it is
            found.

    Raises:
        `ValueError`: if there is nothing to measure on.
    """
    if not held_out:
        raise ValueError(
            "No held-out text has two words. Give more text, or hold out more of it (`validation_share`)."
        )
    known = set(vocabulary)

    def counted(some):
        counts = Counter(word if word in known else UNKNOWN for words in some for word in words)
        counts[END] += len(some)
        return counts

    counts, asked = counted(texts), counted(held_out)
    total = counts.total() + len(known)
    nats = -sum(count * math.log((counts[word] + 1) / total) for word, count in asked.items())
    return math.exp(nats / asked.total())


class ElmoCollator:
    """
    Make a batch for [`ElmoForLanguageModeling`] from rows with `words`.

    Args:
        vocabulary (`Sequence[str]`):
            Words to predict, from [`build_vocabulary`].
        max_characters (`int`):
            Characters of a word.
    """

    def __init__(self, vocabulary: Sequence[str], max_characters: int):
        self.index = {word: index for index, word in enumerate(vocabulary)}
        self.max_characters = max_characters
        self._spelled: dict[str, list[int]] = {}

    def _spell(self, word: str) -> list[int]:
        if word not in self._spelled:
            self._spelled[word] = word_characters(word, self.max_characters)
        return self._spelled[word]

    def __call__(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        texts = [[BEGIN, *row["words"], END] for row in rows]
        longest = max(map(len, texts))
        nothing = [0] * self.max_characters
        unknown = self.index[UNKNOWN]
        return {
            "characters": torch.tensor(
                [[*map(self._spell, words), *[nothing] * (longest - len(words))] for words in texts]
            ),
            "attention_mask": torch.tensor([[1] * len(words) + [0] * (longest - len(words)) for words in texts]),
            "labels": torch.tensor(
                [
                    [self.index.get(word, unknown) for word in words] + [IGNORED] * (longest - len(words))
                    for words in texts
                ]
            ),
        }
